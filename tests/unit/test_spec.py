from __future__ import annotations

import pytest

from moesaic.spec import Layers, LayerSpec, MoESpec


@pytest.mark.parametrize(
    ("rule", "indices"),
    [
        ("all", tuple(range(8))),
        ("every:1", tuple(range(8))),
        ("every:4", (3, 7)),
        ("every:8", (7,)),
        ("first:2", (0, 1)),
        ("last:3", (5, 6, 7)),
        ("3, 1,3", (1, 3)),
    ],
)
def test_layers_are_chosen_by_rule(rule: str, indices: tuple[int, ...]) -> None:
    assert Layers(rule).indices(8) == indices


@pytest.mark.parametrize(
    "rule", ["", "some", "every:", "every:0", "every:x", "every:-1", "1,,2", "1.5", "first:²", "all:2"]
)
def test_a_rule_that_is_none_is_refused_with_its_text(rule: str) -> None:
    with pytest.raises(ValueError, match="layers: the rule must be") as error:
        Layers(rule)
    assert f"'{rule}'" in str(error.value)


@pytest.mark.parametrize(("rule", "value"), [("0,8", "8"), ("every:9", "every:9"), ("last:9", "last:9")])
def test_layers_beyond_the_model_are_refused(rule: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"8 layers.*{value}"):
        Layers(rule).indices(8)


@pytest.mark.parametrize(
    ("field", "value"), [("num_experts", 1), ("top_k", 0), ("top_k", 9), ("expert_size", 0), ("expert_size", -4)]
)
def test_a_number_out_of_range_is_refused_by_name_and_value(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field}: .*Got {value}"):
        MoESpec(**{field: value})


def test_specs_are_values() -> None:
    assert MoESpec() == MoESpec(num_experts=8, top_k=2, layers=Layers("all"))
    assert hash(LayerSpec(8, 2, 16, 64, 64)) == hash(LayerSpec(8, 2, 16, 64, 64, shared_expert=False, gated=True))
