"""A key that config.json leaves out means what the class of transformers takes for it, before and after conversion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.contracts.reading import DENSE, FAMILIES, base, compare, expected, theirs

from moesaic.architectures.dense import STATED
from moesaic.architectures.match import match
from moesaic.convert import Options, prepare
from moesaic.errors import ArchitectureError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.spec import MoESpec

SAME = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "hidden_act", "rms_norm_eps", "norm_eps", "layer_norm_eps", "attention_dropout"),
    *("attention_bias", "initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("logit_scale", "conv_bias", "conv_L_cache", "position_embedding_type"),
    *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
)
"""Keys that mean the same in every class that has them."""


def partial(model_type: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config without each key that may be left out."""
    whole = base(model_type)
    for key in whole.keys() - STATED - DENSE.get(model_type, {}).keys() - {"model_type"}:
        yield key, {name: value for name, value in whole.items() if name != key}
    yield "nothing", whole


def meant(value: Any) -> Any:
    """Return a value in the one of its spellings that the classes prefer."""
    if isinstance(value, list):
        return ["full_attention" if item == "attention" else item for item in value]
    return value or None


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
