"""A wrong value in config.json is one message of ours; whatever is taken is read as transformers reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.contracts.reading import FAMILIES, LAYERS, base, compare, expected, theirs

from moesaic.architectures.config import Config
from moesaic.architectures.match import match
from moesaic.convert import Options, prepare
from moesaic.errors import ArchitectureError, MoesaicError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.spec import MoESpec

VALUES: tuple[Any, ...] = (
    *(None, "x", "8", True, -1, 0, 1.5, 2**40, [], [1], {}, {"a": 1}),
    *(["full_attention"] * (LAYERS - 1), ["full_attention"] * LAYERS, ["spiral"] * LAYERS, [{}] * LAYERS),
)
UNSAID = {
    "cohere2": {},
    "gemma4_text": {"per_layer_config": {"03": {"head_dim": 512}}},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_5_text": {},
}
"""What stands in place of layer_types."""


def broken(model_type: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield configs with each wrong value in each key that the family reads."""
    whole = base(model_type)
    implied = {key: value for key, value in whole.items() if key != "layer_types"} | UNSAID.get(model_type, {})
    for config in (whole, implied) if model_type in UNSAID else (whole,):
        reader = Config(config)
        FAMILIES[model_type].read(reader)
        for key in sorted(reader._asked):
            yield from ((key, value, {**config, key: value}) for value in VALUES)


def usable(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a model of the class is built from, or None where transformers refuses it or nothing can be built."""
    try:
        read = expected(theirs(config))
    except Exception:  # noqa: BLE001  # many kinds, and each is a refusal
        return None
    return None if None in read.values() else read


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_wrong_value_is_refused_or_read_as_transformers_reads_it(model_type: str) -> None:
    different = {}
    for key, value, config in broken(model_type):
        try:
            found = prepare(config, Options(MoESpec(8, 2), SparseUpcycling()))
            assert found.config
            assert found.plan
        except MoesaicError:
            continue
        if want := usable(config):
            different |= {(key, str(value)): pair for pair in compare(found.match.decoder, want).items()}
    assert different == {}


@pytest.mark.parametrize("value", [None, "x", [], 5])
def test_a_part_of_a_composite_that_changes_with_its_text_must_be_an_object(value: Any) -> None:
    composite = {"model_type": "qwen3_vl", "text_config": base("qwen3_vl_text"), "vision_config": value}
    with pytest.raises(ArchitectureError, match=r"config\.json: vision_config must be a JSON object"):
        match(composite, lambda _: {})


def test_numbers_of_single_layers_are_refused_where_no_class_has_them() -> None:
    with pytest.raises(ArchitectureError, match="per_layer_config gives some layers numbers of their own"):
        match({**base("llama"), "per_layer_config": {"1": {"sliding_window": 8}}}, lambda _: {})


def test_heads_of_gemma_4s_full_layers_are_found_under_any_spelling_of_their_numbers() -> None:
    for spelt in ("3", "03"):
        config = {**base("gemma4_text"), "per_layer_config": {spelt: {"head_dim": 64, "num_key_value_heads": 2}}}
        decoder = match(config, lambda _: {}).decoder
        assert (decoder.extra["g"], decoder.extra["H"]) == (64, 128)
    for value in ({"0": {"head_dim": 64}}, {"3": {"head_dim": "x"}}, {"3": 5}, {"3": {"sliding_window": 8}}):
        with pytest.raises(ArchitectureError, match="per_layer_config"):
            match({**base("gemma4_text"), "per_layer_config": value}, lambda _: {})
