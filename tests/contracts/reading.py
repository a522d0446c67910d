"""Configs of the dense classes, and what transformers reads in them, in moesaic's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from moesaic.architectures import DenseFamily, records
from moesaic.architectures.dense import Decoder

FAMILIES = records(DenseFamily)
LAYERS = 4
DENSE: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["attention"] * LAYERS,
        "num_local_experts": 0,
        "position_embedding_type": "rope",
    },
    "mistral": {"sliding_window": None},
}
"""What makes a class's default config a dense model that any target takes."""


def theirs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as transformers reads it."""
    values = dict(config)
    return dict(AutoConfig.for_model(values.pop("model_type"), **values).to_dict())


def base(model_type: str) -> dict[str, Any]:
    """Return the class's default config, every key stated, with heads of another size than the default ones."""
    own = AutoConfig.for_model(model_type)
    changed = {"num_hidden_layers": LAYERS, "num_attention_heads": 2 * own.num_attention_heads}
    fields = type(own).__annotations__.keys() - {"layer_types", "mamba_d_head", "per_layer_config"}
    stated = {key: value for key, value in theirs({"model_type": model_type}).items() if key in fields | {"model_type"}}
    stated |= changed | DENSE.get(model_type, {})
    return {**stated, "layer_types": theirs(stated)["layer_types"]} if "layer_types" in theirs(stated) else stated


def plain(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary settings without what says nothing."""
    return {key: value for key, value in rope.items() if (key, value) != ("partial_rotary_factor", 1.0)}


def expected(read: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the decoder that transformers' reading amounts to."""
    window, most = read.get("sliding_window"), read["max_position_embeddings"]
    kinds = read.get("layer_types") or ["sliding_attention"] * read["num_hidden_layers"]
    found = {
        "hidden": read["hidden_size"],
        "width": read.get("shared_intermediate_size", read["intermediate_size"]),
        "num_layers": read["num_hidden_layers"],
        "vocab": read["vocab_size"],
        "heads": read["num_attention_heads"],
        "kv_heads": read["num_key_value_heads"],
        "head_dim": read.get("head_dim") or read["hidden_size"] // read["num_attention_heads"],
        "act": read.get("hidden_act", read.get("hidden_activation", "silu")),
        "tied": read.get("tie_word_embeddings", False),
        "norm_eps": next(read[key] for key in ("rms_norm_eps", "layer_norm_eps", "norm_eps") if key in read),
        "max_positions": most,
        "windows": tuple(window if kind == "sliding_attention" else None for kind in kinds),
        "rope": plain(read["rope_parameters"]),
    }
    if read["model_type"] == "lfm2":
        with torch.device("meta"):
            found["width"] = Lfm2MLP(AutoConfig.for_model(**read)).w1.out_features
    if read["model_type"] == "gemma4_text":
        del found["rope"]  # carried as it stands: read by nothing
    return found


def compare(decoder: Decoder, want: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (got, wanted) of each field that differs."""
    got = {name: getattr(decoder, name) for name in want}
    got["windows"] = decoder.windows or (None,) * decoder.num_layers
    return {name: (got[name], want[name]) for name in want if got[name] != want[name]}
