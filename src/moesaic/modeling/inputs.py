"""Dummy inputs for any transformers model, from its forward signature and its config."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from moesaic.lazy import torch
from moesaic.modeling.tiny import parts

BATCH, TOKENS = 2, 12
MOST = 16  # candidates tried for one model
Inputs = dict[str, Any]
MELS = ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "n_mels", "mel_dim")
ALWAYS = (
    "input_ids",
    "decoder_input_ids",
    "pixel_values",
    "input_features",
    "input_values",
    "attention_mask",
    "bbox",
    "input_features_mask",
    "grid_thw",
    "spatial_shapes",
    "pixel_attention_mask",
    "is_longer",
    "image_grid_thw",
    "past_values",
    "past_time_features",
    "past_observed_mask",
    "future_values",
    "future_time_features",
    "visual_feats",
    "visual_pos",
)


def candidates(model: PreTrainedModel, seed: int = 0) -> Iterator[Inputs]:
    """Yield inputs worth trying, the likeliest first; which axis an input calls time no signature says."""
    asked = _Asked(model, torch.Generator().manual_seed(seed))
    for names in asked.names():
        choices = [asked.values(name) for name in names]
        for values in itertools.islice(itertools.product(*choices), MOST):
            yield dict(zip(names, values, strict=True)) | asked.constants()


class _Asked:
    """What one model asks for."""

    def __init__(self, model: PreTrainedModel, generator: torch.Generator) -> None:
        self.config, self.generator = model.config, generator
        self.dtype = model.dtype
        self.main = model.main_input_name
        self.parameters = dict(inspect.signature(model.forward).parameters)
        self.text_only = "input_ids" in self.parameters

    def constants(self) -> Inputs:
        """Return what is always passed where it is taken: no cache, which holds nothing of interest."""
        return {"use_cache": False} if "use_cache" in self.parameters else {}

    def names(self) -> Iterator[list[str]]:
        """Yield sets of arguments: everything known, then fewer."""
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        known = {n: p for n, p in self.parameters.items() if p.kind not in kinds}
        must = [n for n, p in known.items() if p.default is inspect.Parameter.empty]
        full = [n for n in known if n in must or n in ALWAYS or n == self.main]
        rich = [n for n in known if n in full or n == "encoder_hidden_states"]
        if not known:
            full = must = [self.main]
        seen: list[list[str]] = []
        plain = [n for n in full if n in must or n in {"input_ids", "decoder_input_ids", "attention_mask"}]
        no_mask = [n for n in full if n != "attention_mask"]
        lone = [n for n in full if n in must or n == self.main]
        both = [n for n in full if n in must or n in {self.main, "decoder_input_ids", "decoder_attention_mask"}]
        embeds = [*must, "inputs_embeds"] if "inputs_embeds" in known and "inputs_embeds" not in must else must
        for names in (full, rich, no_mask, plain, both, lone, must, embeds):
            if names and names not in seen:
                seen.append(names)
                yield names

    def values(self, name: str) -> list[Any]:
        """Return the values worth trying for one argument."""
        maker = MAKERS.get(name)
        if maker is not None:
            return maker(self)
        if name.endswith("_ids"):
            return self.ids()
        if name in {"input_features_mask", "padding_mask", "feature_attention_mask"}:
            return self.feature_masks()
        if name.endswith("mask"):
            return [torch.ones(BATCH, TOKENS, dtype=torch.long)]
        if "pixel" in name or "image" in name:
            return self.pixels()
        return self.states()

    def number(self, *keys: str, default: int) -> int:
        """Return the first of these keys that any part of the config gives as a number."""
        for part in parts(self.config):
            for key in keys:
                value = getattr(part, key, None)
                value = value[0] if isinstance(value, list | tuple) and value else value
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        return default

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def ids(self) -> list[torch.Tensor]:
        vocab = self.number("vocab_size", "text_vocab_size", "codebook_size", default=64)
        special = {n for part in parts(self.config) for n in _token_ids(part)}
        free = torch.tensor([n for n in range(min(vocab, 400)) if n not in special] or [0])
        pick = torch.randint(len(free), (BATCH, TOKENS), generator=self.generator)
        flat = free[pick]
        books = self.number("num_codebooks", "n_codes_total", "num_channels", default=0)
        return [flat, flat[:, :, None].expand(-1, -1, books).contiguous()] if books > 1 else [flat]

    def mask(self) -> list[torch.Tensor]:
        if self.main == "input_features" and "input_ids" not in self.parameters:
            return self.feature_masks()
        return [torch.ones(BATCH, TOKENS, dtype=torch.long)]

    def pixels(self) -> list[torch.Tensor]:
        channels = self.number("num_channels", "in_channels", "in_chans", "input_channels", default=3)
        sizes = dict.fromkeys([self.number("image_size", "img_size", "crop_size", default=64), 64, 224])
        frames = self.number("num_frames", default=2)
        if {"grid_thw", "spatial_shapes", "image_grid_thw"} & set(self.parameters):
            return self.patches()
        images = [self.random(BATCH, channels, n, n) for n in sizes]
        first = next(iter(sizes))
        videos = [self.random(BATCH, frames, channels, first, first), self.random(BATCH, 1, channels, first, first)]
        return [*videos, *images] if "num_frames" in vars(self.config) else [*images, *videos]

    def states(self) -> list[torch.Tensor]:
        width = self.number("hidden_size", "d_model", "embed_dim", "hidden_dim", "n_embd", "dim", default=32)
        taken = self.number("input_dim", "input_size", "num_mel_bins", default=width)
        batches = [self.random(BATCH, TOKENS, n) for n in dict.fromkeys([width, taken])]
        return [*batches, self.random(TOKENS, width), self.random(BATCH, width, 16, 16), self.random(BATCH, 3, 64, 64)]

    def past(self, *shape: int) -> list[torch.Tensor]:
        """Return a time series as long as the model looks back, or looks at."""
        lags = max((max(vars(part).get("lags_sequence") or [0]) for part in parts(self.config)), default=0)
        length = self.number("context_length", default=16) + lags
        channels = self.number("num_input_channels", "input_size", default=1)
        return [self.random(BATCH, length, *shape), self.random(BATCH, length, *(shape or (channels,)))]

    def past_features(self) -> list[torch.Tensor]:
        return self.past(self.number("num_time_features", default=0))

    def future(self, *shape: int) -> list[torch.Tensor]:
        return [self.random(BATCH, self.number("prediction_length", default=4), *shape)]

    def future_features(self) -> list[torch.Tensor]:
        return self.future(self.number("num_time_features", default=0))

    def regions(self) -> list[torch.Tensor]:
        return [self.random(BATCH, TOKENS, self.number("visual_feat_dim", default=32))]

    def features(self) -> list[torch.Tensor]:
        mels = self.number(*MELS, default=80)
        frames = 2 * self.number("max_source_positions", default=64)
        flat = [self.random(BATCH, mels, frames), self.random(BATCH, 64, mels), self.random(BATCH, mels, 128)]
        return [*flat, self.random(BATCH, 1, 1024, mels)]

    def feature_masks(self) -> list[torch.Tensor]:
        shapes = [t.shape for t in self.features()]
        frames = dict.fromkeys([shapes[0][2], shapes[1][1], shapes[2][2]])
        return [torch.ones(BATCH, n, dtype=torch.long) for n in frames]

    def sound(self) -> list[torch.Tensor]:
        mels = self.number("num_mel_bins", "feature_size", "mel_dim", default=80)
        long = self.number("max_length", "spec_size", default=128)
        return [
            self.random(BATCH, 6400),
            self.random(BATCH, 1, 6400),
            self.random(BATCH, long, mels),
            self.random(BATCH, mels, long),
            self.random(BATCH, 1, long, mels),
        ]

    def boxes(self) -> list[torch.Tensor]:
        return [torch.tensor([1, 2, 7, 9]).expand(BATCH, TOKENS, 4).contiguous()]

    def encoded(self) -> list[torch.Tensor]:
        keys = ("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", "d_model")
        return [self.random(BATCH, TOKENS, self.number(*keys, default=32))]

    def grid(self) -> list[torch.Tensor]:
        return [torch.tensor([[1, 4, 4]])]

    def patches(self) -> list[torch.Tensor]:
        """Pixels as Qwen2-VL's vision towers take them: one row a patch."""
        if not {"grid_thw", "spatial_shapes", "image_grid_thw"} & set(self.parameters):
            return self.states()
        side = self.number("patch_size", default=14)
        depth = self.number("temporal_patch_size", default=1)
        channels = self.number("in_channels", "in_chans", "num_channels", default=3)
        width = self.number("hidden_size", "embed_dim", default=32)
        flat, two = (self.random(16, channels * n * side * side) for n in (depth, 2))
        more = [self.random(16, channels, side, side), self.random(16, width), two]
        batch = self.random(1, 16, channels * depth * side * side)
        return [batch, flat, *more] if "spatial_shapes" in self.parameters else [flat, batch, *more]


MAKERS: dict[str, Callable[[_Asked], list[Any]]] = {
    "attention_mask": _Asked.mask,
    "pixel_values": _Asked.pixels,
    "pixel_values_videos": _Asked.pixels,
    "input_features": _Asked.features,
    "input_values": _Asked.sound,
    "hidden_states": _Asked.patches,
    "encoder_hidden_states": _Asked.encoded,
    "bbox": _Asked.boxes,
    "past_values": _Asked.past,
    "past_observed_mask": lambda asked: [torch.ones_like(t) for t in asked.past()],
    "past_time_features": _Asked.past_features,
    "future_values": _Asked.future,
    "future_time_features": _Asked.future_features,
    "visual_feats": _Asked.regions,
    "visual_pos": lambda asked: [asked.random(BATCH, TOKENS, 4).abs()],
    "grid_thw": _Asked.grid,
    "spatial_shapes": lambda _: [torch.tensor([[4, 4]])],
    "pixel_attention_mask": lambda _: [torch.ones(1, 16, dtype=torch.long)],
    "is_longer": lambda _: [torch.zeros(BATCH, 1, dtype=torch.bool)],
    "image_grid_thw": _Asked.grid,
}


def _token_ids(config: PreTrainedConfig) -> Iterator[int]:
    for key, value in vars(config).items():
        if "token" in key:
            yield from (n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int))
