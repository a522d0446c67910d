"""A config shrunk to a few layers of few neurons, with everything that decides the wiring kept.

Widths are divided by one number in the whole config, its parts included, so that what had to be equal, or twice as
large, still is. Layers are cut to the first few; per-layer lists are cut with them, and stay long enough to hold every
kind of layer they name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from transformers import PreTrainedConfig

LAYERS = re.compile(
    r"(^|_)(num_(\w+_)?(layers|blocks|stacks)|n_layers?|depth|layers|attention_layers|encoder_layers|decoder_layers"
    r"|num_layers_\w+)$"
)
NOT_LAYERS = re.compile(
    r"max_window_layers|feat_extract|kv_shared|nextn|mtp|adapter_layers|upsampling|look_|postnet|no_rope|dense_layers"
    r"|num_block_repeats|encode_proj|numb_of"
)
DEPTHS = re.compile(
    r"(^|_)(depths|blocks_per_stage|num_blocks_list|stage_numb_of_layers|layers_per_stage|encoder_depths)$"
)
FFN_WIDTH = re.compile(
    r"(intermediate_sizes?|intermediate_dim|ffn_dim|ffn_inner_dim|dim_feedforward|d_ff|mlp_dim|n_inner|ffn_hidden_size"
    r"|feed_forward_hidden_size|mlp_hidden_size|mlp_size)$"
)
WIDTH = re.compile(
    FFN_WIDTH.pattern + r"|(hidden_sizes?|hidden_dims?|hidden_channels|d_model|d_inner|n_embd|embed_dims?"
    r"|embedding_dims?|embedding_size|emb_dim|word_embed_proj_dim|lm_hidden_size|projection_dim|proj_dim"
    r"|projection_size|proj_size|output_dims?|out_dims?|input_dim|channels|lora_rank|encoder_hidden_dim|lru_width|d_ssm|d_latents|visual_feat_dim"
    r"|conv_dims?|n_state|pooler_output_size|vision_dim|text_dim|audio_dim|query_dim|context_dim|model_dim|dim_model"
    r"|token_dim|latent_dim|^dim|^width)$"
)
CHANNELS = re.compile(r"channels$|^upsample_initial_channel$")
HIDDEN = re.compile(r"^(hidden_sizes?|d_model|embed_dim|hidden_dim|n_embd|dim)$")
HEADS = re.compile(
    r"(^|_)(heads|n_heads?|nhead|num_heads\w*|num_attention_heads\w*|num_kv|n_kv_heads?|multi_query_group_num)$"
)
HEAD_DIM = re.compile(r"(head_dim|d_head|d_kv|kv_channels|dim_head|head_size|rotary_dim|query_pre_attn_scalar)$")
VOCAB = re.compile(r"vocab(_size)?(_per_layer_input)?$|^num_embeds$")
TOKEN = re.compile(r"(token|bos|eos|pad|sep|cls|mask|start|end)_(id|index|ids|token_id)$|_token$")
POSITIONS = re.compile(
    r"max_position_embeddings|^n_positions$|max_(source|target)_positions|max_seq_len|max_sequence_length|^n_ctx$"
)
EXPERTS = re.compile(r"(^|_)(num|n)_(\w+_)?experts$")
TOP_K = re.compile(r"(experts_per_tok|moe_k|moe_topk|top_k|experts_per_token)$")
GROUPS = re.compile(r"^(n_group|topk_group|num_expert_groups?)$")
INDICES = re.compile(
    r"(ind(ex)?(es|ices)|idx|layer_ids?|feature_layers?|cross_attention_layers|out_layers|global_attention_blocks)$"
)
UP_TO_DEPTH = re.compile(r"(feature|hidden)_layer$|max_window_layers")
MAX_VOCAB, MAX_POSITIONS, MAX_LAYERS, MAX_IMAGE = 512, 512, 12, 256


@dataclass(frozen=True)
class Scale:
    """By how much a config shrinks: head sizes by `head_dim`, numbers of heads by `heads`, all other widths by both."""

    head_dim: int = 1
    heads: int = 1
    depth: bool = True
    vocab: bool = True

    @property
    def width(self) -> int:
        return self.head_dim * self.heads


def tiny_config(config: PreTrainedConfig, scale: Scale | None = None) -> PreTrainedConfig:
    """Return a small config of the same class and wiring; `config` is left as it is.

    Args:
        scale: by how much; `scales(config)[0]` unless given.
    """
    return _Shrinker(scale or scales(config)[0]).shrink(config)


def scales(config: PreTrainedConfig) -> list[Scale]:
    """Return the scales worth trying, smallest model first, ending with a cut of layers alone and with nothing cut."""
    counts = [n for part in parts(config) for n in _heads(part)]
    sizes = [size for part in parts(config) for size in _head_dims(part)]
    heads = max((h for h in (4, 2, 1) if all(n % h == 0 or n == 1 for n in counts)), default=1)
    fits = [k for k in (16, 8, 4, 2) if all(n % (2 * k) == 0 and n // k >= 12 for n in sizes)]
    dim = (fits or [1])[0] if sizes else 8
    wanted = [Scale(dim, heads), Scale(1, heads), Scale(), Scale(dim), Scale(2)]
    return list(dict.fromkeys([*wanted, Scale(vocab=False), Scale(depth=False, vocab=False)]))


def parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield the config and the configs inside it, outermost first."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from parts(value)


def _numbers(value: object) -> list[int]:
    items = value if isinstance(value, list | tuple) else [value]
    return [n for n in items if isinstance(n, int) and not isinstance(n, bool) and n > 0]


def _heads(config: PreTrainedConfig) -> list[int]:
    return [n for key, value in vars(config).items() if HEADS.search(key) for n in _numbers(value)]


def _head_dims(config: PreTrainedConfig) -> list[int]:
    found = [n for key, value in vars(config).items() if HEAD_DIM.search(key) for n in _numbers(value)]
    if found:
        return found
    sizes = [value for key, value in vars(config).items() if HIDDEN.search(key) and _is_int(value)]
    counts = {value for key, value in vars(config).items() if HEADS.search(key) and _is_int(value) and value > 0}
    return [n // heads for n in sizes for heads in counts if n % heads == 0 and 16 <= n // heads <= 256]


@dataclass
class _Shrinker:
    scale: Scale
    tokens: dict[int, int] = field(default_factory=dict)  # old id -> new id, the same in all parts

    def shrink(self, config: PreTrainedConfig) -> PreTrainedConfig:
        values = config.to_dict()
        depths = self.depths(values) if self.scale.depth else {}
        for key, value in values.items():
            part = vars(config).get(key)
            if isinstance(part, PreTrainedConfig):
                values[key] = self.shrink(part).to_dict()
            elif key == "rope_parameters" and isinstance(value, dict):
                values[key] = self.rope(value)
                if "mrope_section" in config.ignore_keys_at_rope_validation and "rope_type" in value:
                    values[key].setdefault("mrope_section", self.mrope(config))
            elif key == "per_layer_config" and isinstance(value, dict):
                left = max((new for _, new in depths.values()), default=len(value))
                values[key] = {n: self.layer(v) for n, v in value.items() if int(n) < left}
            elif key == "image_size":
                values[key] = _image(value, values.get("patch_size"))
            elif not isinstance(value, dict | str | bool | None):
                values[key] = self.value(key, value, depths)
        _widen_ffns(values)
        for key in ("out_features", "stage_names", "transformers_version", "architectures", "dtype", "label2id"):
            values.pop(key, None)
        values.pop("_attn_implementation_internal", None)
        return type(config).from_dict(values)

    def layer(self, values: dict[str, Any]) -> dict[str, Any]:
        """Shrink what one layer has otherwise than the rest."""
        return {key: self.value(key, value, {}) for key, value in values.items()}

    def mrope(self, config: PreTrainedConfig) -> list[int]:
        """Return sections for the half of a small head; models have a constant, of large heads, where none are set."""
        share = (vars(config)["rope_parameters"] or {}).get("partial_rotary_factor", 1.0)
        values = vars(config)
        size = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
        size //= self.scale.head_dim
        half = int(size * share) // 2
        return [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]

    def depths(self, values: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """Return {key: (old, new)} of every number of layers, new being enough for every kind of layer."""
        outs = values.get("out_indices")
        least = max(2, len(outs) if isinstance(outs, list | tuple) else 2)
        found = {}
        for key, old in values.items():
            if not _is_int(old) or not LAYERS.search(key) or NOT_LAYERS.search(key):
                continue
            lists = [v for v in values.values() if isinstance(v, list | tuple) and len(v) == old]
            need = max((_kinds(v) for v in lists), default=1)
            found[key] = (old, min(old, max(least, min(need, MAX_LAYERS))))
        return found

    def value(self, key: str, value: Any, depths: dict[str, tuple[int, int]]) -> Any:
        """Return the shrunk value of one key."""
        if key in depths:
            return depths[key][1]
        if isinstance(value, list | tuple):
            return self.many(key, list(value), depths)
        if _is_int(value):
            return self.number(key, value, depths)
        return value

    def many(self, key: str, values: list[Any], depths: dict[str, tuple[int, int]]) -> list[Any]:
        old, new = max(depths.values(), default=(0, 0))
        if DEPTHS.search(key) and self.scale.depth:
            return [min(n, 2) if isinstance(n, int) else [min(m, 2) for m in n] for n in values]
        if INDICES.search(key) and depths and all(isinstance(n, int) for n in values):
            return _indices(key, values, old, new)
        for old_n, new_n in depths.values():
            if len(values) == old_n and new_n < old_n:
                values = values[:new_n]
                break
        return [self.number(key, v, {}) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]

    def number(self, key: str, n: int, depths: dict[str, tuple[int, int]]) -> int:
        new = max((new for _, new in depths.values()), default=n)
        rules: list[tuple[re.Pattern[str], Callable[[int], int]]] = [
            (VOCAB, lambda n: min(n, MAX_VOCAB) if self.scale.vocab else n),
            (POSITIONS, lambda n: min(n, MAX_POSITIONS)),
            (EXPERTS, lambda n: min(n, 4)),
            (TOP_K, lambda n: min(n, 2)),
            (TOKEN, self.token),
            (GROUPS, lambda n: min(n, 1)),
            (re.compile(r"num_kv_shared_layers$"), lambda n: min(n, new // 2)),
            (UP_TO_DEPTH, lambda n: min(n, new)),
            (re.compile(r"groups$"), lambda n: min(n, 4) if self.scale.width > 1 else n),
            (HEADS, lambda n: max(1, n // self.scale.heads)),
            (HEAD_DIM, lambda n: max(1, n // self.scale.head_dim)),
            (CHANNELS, self.channels),
            (WIDTH, self.width),
        ]
        return next((rule(n) for pattern, rule in rules if pattern.search(key)), n)

    def width(self, n: int) -> int:
        return n if n < 16 or self.scale.width == 1 else max(8, 4 * ceil(n / self.scale.width / 4))

    def channels(self, n: int) -> int:
        """Return a number of channels that 32 groups of a norm divide; those of colours stay."""
        return n if n <= 4 or self.scale.width == 1 else 32 * ceil(n / self.scale.width / 32)

    def token(self, n: int) -> int:
        """Return an id within the small vocabulary; equal ids stay equal and different ones different."""
        if n < MAX_VOCAB or not self.scale.vocab:
            return n
        return self.tokens.setdefault(n, MAX_VOCAB - 1 - len(self.tokens))

    def rope(self, values: dict[str, Any]) -> dict[str, Any]:
        """Shrink what in the rotary parameters counts dimensions of a head."""
        new = dict(values)
        for key, value in values.items():
            if isinstance(value, dict):
                new[key] = self.rope(value)
            elif key == "mrope_section" and isinstance(value, list | tuple):
                new[key] = _section(value, self.scale.head_dim)
            elif key in {"short_factor", "long_factor"} and isinstance(value, list | tuple):
                new[key] = value[: max(1, len(value) // self.scale.head_dim)]
        return new


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kinds(values: list[Any] | tuple[Any, ...]) -> int:
    """Return how many items, from the first, hold every kind of item; numbers of many kinds say nothing."""
    first = [i for i, v in enumerate(values) if v not in values[:i]]
    return first[-1] + 1 if len(first) <= 4 else 1


def _indices(key: str, values: list[int], old: int, new: int) -> list[int]:
    """Keep the indices of layers that are left; of a list whose length counts, move as many into them as fit."""
    if not values or all(-new <= n < new for n in values) or old <= new:
        return values
    if not key.endswith("out_indices"):
        return [n for n in values if n < new] or [new - 1]
    last = new if max(values) >= old else new - 1
    return sorted({max(0, last - i) for i in range(len(values))})


def _image(size: Any, patch: Any) -> Any:
    """Halve a large image while whole patches, an even number of them, are left."""
    if isinstance(size, list | tuple):
        return [_image(n, patch) for n in size]
    step = 2 * max(_numbers(patch), default=1)
    while _is_int(size) and size > MAX_IMAGE and size % (2 * step) == 0:
        size //= 2
    return step * max(1, MAX_IMAGE // step) if _is_int(size) and size > 2 * MAX_IMAGE else size


def _section(values: list[int] | tuple[int, ...], by: int) -> list[int]:
    """Split a smaller half of a head in about the same shares."""
    total = sum(values) // by
    small = [max(1, n // by) for n in values]
    small[0] += total - sum(small)
    return small


def _widen_ffns(values: dict[str, Any]) -> None:
    """Make sure that no FFN is as wide as its model: values could not tell its linears apart."""
    widths = {n for key, n in values.items() if _is_int(n) and WIDTH.search(key) and not FFN_WIDTH.search(key)}
    for key, n in values.items():
        if _is_int(n) and FFN_WIDTH.search(key) and n in widths:
            values[key] = n + 8
