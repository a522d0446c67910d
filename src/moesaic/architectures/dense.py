"""Dense decoders in neutral terms: which tensors they hold and what a sparse class must be able to express."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moesaic.architectures.carried import carried
from moesaic.architectures.config import Config
from moesaic.architectures.rotary import rope_features, rope_parameters


@dataclass(frozen=True)
class Decoder:
    """One dense decoder, read from its config.

    Args:
        family: model type of the dense class. body: the kind of attention, norms and residuals around the FFN; a
            sparse target takes the bodies it names and no other.
        hidden: D. width: F. num_layers: L. vocab: V. heads, kv_heads, head_dim: attention.
        act: name of the FFN's activation. tied: whether the output head is the embedding.
        features: what goes beyond the plainest decoder of this body, each with the config field it comes from; a
            target that does not support one of them is refused with that text.
        config: the config as given, with the class's defaults of absent keys. extra: further dimension letters.
        norm_eps, max_positions, rope, windows: values that targets write down again; `rope` in the canonical form
            {"rope_type", "rope_theta", ...}, `windows` each layer's sliding window in tokens, None for full attention.
        layer_kinds: each layer's mixer as layer_types names it, where a body has several.
        embedding_scale, residual_scale, attention_scale, logit_scale: multipliers; attention_scale None is
            head_dim^-0.5; logits are divided by `logit_scale`. norm_offset: added to every norm weight.
    """

    family: str
    body: str
    hidden: int
    width: int
    num_layers: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    act: str
    tied: bool
    config: Mapping[str, Any]
    features: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    norm_eps: float = 1e-6
    max_positions: int = 2048
    rope: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = ()
    layer_kinds: tuple[str, ...] = ()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logit_scale: float = 1.0
    norm_offset: float = 0.0

    @property
    def dims(self) -> dict[str, int]:
        """Dimension letters of the tensor tables: D, F, V, Q and K (all query, all key heads), h (one head)."""
        attention = {"Q": self.heads * self.head_dim, "K": self.kv_heads * self.head_dim, "h": self.head_dim}
        return {"D": self.hidden, "F": self.width, "V": self.vocab, **attention, **self.extra}

    def with_head(self, present: bool) -> Decoder:
        """Return the decoder as a checkpoint with (or without) an output head of its own has it.

        Composite configs leave open which of their parts decides on tying; the tensors on disk tell.
        """
        kept = {key: value for key, value in self.features.items() if key not in ("tied", "untied")}
        state = {"untied": "an output head of its own"} if present else {"tied": "no output head of its own"}
        return replace(self, tied=not present, features={**state, **kept})


@dataclass(frozen=True)
class Entry:
    """One line of a tensor table.

    Args:
        role: what the tensor is, e.g. `q`, `ffn_norm`, `gate`; targets rename by role.
        name: template with `{layer}` where the tensor belongs to a layer.
        shape: dimension letters, e.g. `QD`.
        feature: the tensor exists only where the decoder has this feature; None: always.
        fused: (role, rows as a dimension letter) of each part, where several matrices stand in one tensor.
        where: the layers that have it; None: all.
    """

    role: str
    name: str
    shape: str
    feature: str | None = None
    fused: tuple[tuple[str, str], ...] = ()
    where: Callable[[Decoder, int], bool] | None = None


@dataclass(frozen=True)
class Part:
    """A run of rows of a stored tensor that plays one role."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Stored:
    """One tensor of the dense checkpoint: its name, shape, layer, and the role of each run of rows."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    parts: tuple[Part, ...]


STATED = frozenset({"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
"""What every config.json states but that of a composite, which leaves out the defaults of its text class."""


@dataclass(frozen=True)
class DenseFamily:
    """A dense model type: how to read its config, which tensors it has, which sparse targets suit it.

    Args:
        model_type, class_name: as in config.json. read: config -> Decoder.
        table: every tensor. targets: model types of sparse targets, the preferred first.
        defaults: the class's own values of keys that a config may leave out, where the readers have none or another.
        standalone: why the family can't be the language model of a composite; empty: it can.
        ignored: patterns (`re.search`) of tensors that some checkpoints hold beside these and the class never reads.
    """

    model_type: str
    class_name: str
    read: Callable[[Config], Decoder]
    table: tuple[Entry, ...]
    targets: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    standalone: str = ""
    ignored: tuple[str, ...] = (r"\.rotary_emb\.inv_freq$",)

    def absent(self, *, composite: bool) -> Mapping[str, Any]:
        """Return the values of absent keys: a config.json of its own must state the sizes in `STATED`."""
        return {key: value for key, value in self.defaults.items() if composite or key not in STATED}

    def tensors(self, decoder: Decoder) -> Iterator[Stored]:
        """Yield every tensor that a checkpoint of this decoder holds, in table order, layer by layer."""
        for entry in self.table:
            if entry.feature is not None and entry.feature not in decoder.features:
                continue
            if "{layer}" not in entry.name:
                yield _stored(entry, decoder, None)
        for layer in range(decoder.num_layers):
            for entry in self.table:
                if entry.feature is not None and entry.feature not in decoder.features:
                    continue
                if "{layer}" in entry.name and (entry.where is None or entry.where(decoder, layer)):
                    yield _stored(entry, decoder, layer)


def _stored(entry: Entry, decoder: Decoder, layer: int | None) -> Stored:
    dims = decoder.dims
    parts, start = [], 0
    if not entry.fused:
        parts.append(Part(entry.role, 0, dims[entry.shape[0]]))
    for role, rows in entry.fused:
        parts.append(Part(role, start, start + dims[rows]))
        start += dims[rows]
    shape = (start or dims[entry.shape[0]], *(dims[letter] for letter in entry.shape[1:]))
    return Stored(entry.name.format(layer=layer), shape, layer, tuple(parts))


def edited(table: tuple[Entry, ...], *changes: Entry, without: tuple[str, ...] = ()) -> tuple[Entry, ...]:
    """Return a tensor table with the entries of the same role replaced, new ones appended, and some left out."""
    new = {entry.role: entry for entry in changes}
    kept = [new.pop(entry.role, entry) for entry in table if entry.role not in without]
    return (*kept, *new.values())


LLAMA_TABLE = (
    Entry("embed", "model.embed_tokens.weight", "VD"),
    Entry("final_norm", "model.norm.weight", "D"),
    Entry("head", "lm_head.weight", "VD", feature="untied"),
    Entry("attn_norm", "model.layers.{layer}.input_layernorm.weight", "D"),
    Entry("q", "model.layers.{layer}.self_attn.q_proj.weight", "QD"),
    Entry("k", "model.layers.{layer}.self_attn.k_proj.weight", "KD"),
    Entry("v", "model.layers.{layer}.self_attn.v_proj.weight", "KD"),
    Entry("o", "model.layers.{layer}.self_attn.o_proj.weight", "DQ"),
    Entry("q_bias", "model.layers.{layer}.self_attn.q_proj.bias", "Q", feature="qkv_bias"),
    Entry("k_bias", "model.layers.{layer}.self_attn.k_proj.bias", "K", feature="qkv_bias"),
    Entry("v_bias", "model.layers.{layer}.self_attn.v_proj.bias", "K", feature="qkv_bias"),
    Entry("o_bias", "model.layers.{layer}.self_attn.o_proj.bias", "D", feature="o_bias"),
    Entry("q_norm", "model.layers.{layer}.self_attn.q_norm.weight", "h", feature="qk_norm"),
    Entry("k_norm", "model.layers.{layer}.self_attn.k_norm.weight", "h", feature="qk_norm"),
    Entry("ffn_norm", "model.layers.{layer}.post_attention_layernorm.weight", "D"),
    Entry("gate", "model.layers.{layer}.mlp.gate_proj.weight", "FD"),
    Entry("up", "model.layers.{layer}.mlp.up_proj.weight", "FD"),
    Entry("down", "model.layers.{layer}.mlp.down_proj.weight", "DF"),
    Entry("gate_bias", "model.layers.{layer}.mlp.gate_proj.bias", "F", feature="mlp_bias"),
    Entry("up_bias", "model.layers.{layer}.mlp.up_proj.bias", "F", feature="mlp_bias"),
    Entry("down_bias", "model.layers.{layer}.mlp.down_proj.bias", "D", feature="mlp_bias"),
)
"""Tensors of a Llama-like decoder; families that differ edit it."""

ACTIVATIONS = frozenset(
    {"gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"}
    | {"gelu_pytorch_tanh", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6"}
    | {"hardswish", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu"}
)
"""What `hidden_act` may say: the newest transformers' ACT2FN."""


def llama_like(
    config: Config,
    family: str,
    *,
    tied: bool = False,
    theta: float = 10000.0,
    norm_eps: float = 1e-6,
    norm_eps_key: str = "rms_norm_eps",
    tied_key: str = "tie_word_embeddings",
    features: Mapping[str, str] | None = None,
    **values: Any,
) -> Decoder:
    """Read the fields that all Llama-like configs share; `features` and `values` add what the family has beyond.

    Args:
        tied, theta, norm_eps: the family's defaults of `tied_key`, rope_theta and `norm_eps_key`.
    """
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    is_tied = config.flag(tied_key, tied)
    readers: dict[str, Callable[[], Any]] = {
        "width": lambda: config.size("intermediate_size"),
        "act": lambda: config.word("hidden_act", "silu", ACTIVATIONS),
        "rope": lambda: rope_parameters(config, theta),
    }
    base: dict[str, Any] = {
        "body": "llama",
        "hidden": hidden,
        "num_layers": config.size("num_hidden_layers"),
        "vocab": config.size("vocab_size"),
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", heads),
        "head_dim": config.size("head_dim", max(hidden // heads, 1)),
        "max_positions": config.size("max_position_embeddings", 2048),
        "norm_eps": config.real(norm_eps_key, norm_eps),
    }
    base |= {key: read() for key, read in readers.items() if key not in values} | values
    config.check_positive(norm_eps_key, base["norm_eps"])
    if config.get("head_dim") is None:
        config.check(hidden % heads == 0, "num_attention_heads", f"a divisor of hidden_size = {hidden}", heads)
    kv_heads = base["kv_heads"]
    config.check(heads % kv_heads == 0, "num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)
    found = {"tied" if is_tied else "untied": f"{tied_key} = {str(is_tied).lower()}", **(features or {})}
    if base["act"] not in ("silu", "swish"):
        found["non_silu"] = f"the activation is {base['act']}"
    if config.mapping("per_layer_config"):
        found["per_layer"] = "per_layer_config gives some layers numbers of their own"
    if base["head_dim"] * heads != hidden:
        found["head_dim"] = f"head_dim = {base['head_dim']}, other than hidden_size / num_attention_heads"
    return Decoder(
        family=family,
        tied=is_tied,
        config={**config.defaults, **config.values, **carried(config)},
        features={**found, **rope_features(base["rope"])},
        **base,
    )


def attention_bias_features(config: Config, key: str = "attention_bias", default: bool = False) -> dict[str, str]:
    """Return the features of biases on q, k, v and o, which one config field switches."""
    on = config.flag(key, default)
    return dict.fromkeys(("qkv_bias", "o_bias"), f"{key} = true") if on else {}


def mlp_bias_features(config: Config, key: str = "mlp_bias") -> dict[str, str]:
    """Return the feature of biases in the FFN."""
    return {"mlp_bias": f"{key} = true"} if config.flag(key, default=False) else {}


def stated_window(config: Config, absent: int | None) -> int | None:
    """Return the sliding window in tokens: `absent` where the key is, none where it is null."""
    return None if config.nullable("sliding_window", absent) is None else config.size("sliding_window", absent)


def window(config: Config, absent: int | None = None) -> int | None:
    """Return the sliding window in tokens as `stated_window` does; one that no permitted position can leave is none."""
    size = stated_window(config, absent)
    return None if size is None or size >= config.size("max_position_embeddings", size + 1) else size


def window_features(windows: tuple[int | None, ...]) -> dict[str, str]:
    """Return the features of a model's sliding windows: none, the same everywhere, or a mix."""
    kinds = set(windows)
    if kinds <= {None}:
        return {}
    if len(kinds) == 1:
        return {"window": f"sliding_window = {windows[0]} in every layer"}
    return {"layer_windows": "a sliding window in some layers only (layer_types)"}
