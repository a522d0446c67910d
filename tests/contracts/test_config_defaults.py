"""A key that config.json leaves out means what the class of transformers takes for it, before and after conversion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.lfm2.modeling_lfm2 import Lfm2MLP

from moesaic.architectures import DenseFamily, records
from moesaic.architectures.dense import STATED, Decoder
from moesaic.architectures.match import match
from moesaic.convert import Options, prepare
from moesaic.errors import ArchitectureError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.spec import MoESpec

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
SAME = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "hidden_act", "rms_norm_eps", "norm_eps", "layer_norm_eps", "attention_dropout"),
    *("attention_bias", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("logit_scale", "conv_bias", "conv_L_cache", "position_embedding_type"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
)
"""Keys that mean the same in every class that has them."""


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


def partial(model_type: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config without each key that may be left out."""
    whole = base(model_type)
    for key in whole.keys() - STATED - DENSE.get(model_type, {}).keys() - {"model_type"}:
        yield key, {name: value for name, value in whole.items() if name != key}
    yield "nothing", whole


def plain(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary settings without what says nothing."""
    return {key: value for key, value in rope.items() if (key, value) != ("partial_rotary_factor", 1.0)}


def meant(value: Any) -> Any:
    """Return a value in the one of its spellings that the classes prefer."""
    if isinstance(value, list):
        return ["full_attention" if item == "attention" else item for item in value]
    return value or None


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


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_key_left_out_reads_as_the_dense_class_reads_it(model_type: str) -> None:
    different = {}
    for key, config in partial(model_type):
        found = compare(match(config, lambda _: {}).decoder, expected(theirs(config)))
        different |= {(key, name): pair for name, pair in found.items()}
    assert different == {}


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if not family.standalone])
def test_a_composites_text_config_may_leave_out_whatever_is_the_classs_default(model_type: str) -> None:
    left = {key: value for key, value in DENSE.get(model_type, {}).items() if key != "layer_types"}
    text = {"model_type": model_type, **left}
    text |= {"layer_types": ["attention"] * 32} if model_type == "granitemoehybrid" else {}
    decoder = match({"model_type": "llava", "text_config": text}, lambda _: {}).decoder
    assert compare(decoder, expected(theirs(text))) == {}


def test_the_experts_that_granites_class_has_by_default_are_not_overlooked() -> None:
    config = {key: value for key, value in base("granitemoehybrid").items() if key != "num_local_experts"}
    assert theirs(config)["num_local_experts"] == 8
    with pytest.raises(ArchitectureError, match=r"num_local_experts must be 0 in a dense model.* Got 8"):
        match(config, lambda _: {})


def test_gemma_takes_its_activation_from_the_key_that_its_class_reads() -> None:
    config = {**base("gemma"), "hidden_act": "gelu", "hidden_activation": "relu"}
    assert match(config, lambda _: {}).decoder.act == theirs(config)["hidden_act"] == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("model_type", "target"), [(name, target) for name, family in FAMILIES.items() for target in family.targets]
)
def test_a_key_left_out_means_the_same_in_the_moe_class(model_type: str, target: str) -> None:
    different = {}
    for key, config in partial(model_type):
        written = prepare(config, Options(MoESpec(8, 2), SparseUpcycling(), target=target)).config
        dense, sparse = theirs(config), theirs(written)
        same = [name for name in SAME if dense.get(name) is not None and name in sparse]
        same += [name for name in ("pad_token_id", "bos_token_id", "eos_token_id") if name in dense]
        different |= {(key, name): (dense[name], sparse[name]) for name in same if dense[name] != sparse[name]}
        lost = [name for name in written if name in sparse and meant(sparse[name]) != meant(written[name])]
        different |= {(key, name): (written[name], sparse[name]) for name in lost}
    assert different == {}
