"""The algebra of FFN blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moesaic.ffn import FFN, NEURON_AXIS

ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
"""Float64 sums of at most twelve terms, in another order."""
ACTIVATIONS = [torch.nn.functional.silu, torch.nn.functional.gelu, torch.relu]


@st.composite
def blocks(draw: st.DrawFn) -> FFN:
    """Return an FFN of 1-12 neurons and 1-6 dimensions, gated or plain, with any biases."""
    width, hidden = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes = {"up": (width, hidden), "down": (hidden, width)}
    if draw(st.booleans()):
        shapes["gate"] = (width, hidden)
    optional = {"gate_bias": (width,), "up_bias": (width,), "down_bias": (hidden,)}
    names = draw(st.sets(st.sampled_from(sorted(optional))))
    shapes |= {name: optional[name] for name in names if name != "gate_bias" or "gate" in shapes}
    return FFN(**{name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()})


def tokens(ffn: FFN) -> torch.Tensor:
    return torch.randn(5, ffn.hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(deadline=None)
@given(ffn=blocks(), data=st.data(), act=st.sampled_from(ACTIVATIONS))
def test_the_order_of_neurons_changes_nothing(ffn: FFN, data: st.DataObject, act: torch.nn.Module) -> None:
    order = torch.tensor(data.draw(st.permutations(range(ffn.width))))
    x = tokens(ffn)
    assert_close(ffn.take(order)(x, act), ffn(x, act), **ROUNDING)


@settings(deadline=None)
@given(ffn=blocks(), data=st.data())
def test_a_permutation_and_its_inverse_are_nothing(ffn: FFN, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(ffn.width))))
    for (_, a), (_, b) in zip(ffn.take(order).take(order.argsort()).matrices(), ffn.matrices(), strict=True):
        assert_close(a, b, rtol=0, atol=0)  # moved, never computed


@settings(deadline=None)
@given(ffn=blocks(), data=st.data(), act=st.sampled_from(ACTIVATIONS))
def test_pieces_of_a_partition_joined_again_are_the_whole(ffn: FFN, data: st.DataObject, act: torch.nn.Module) -> None:
    cut = data.draw(st.integers(0, ffn.width))
    left, right = ffn.take(torch.arange(cut)), ffn.take(torch.arange(cut, ffn.width))
    if right.down_bias is not None:
        right = right.replace(down_bias=torch.zeros_like(right.down_bias))
    x = tokens(ffn)
    for (_, a), (_, b) in zip(left.concat(right).matrices(), ffn.matrices(), strict=True):
        assert_close(a, b, rtol=0, atol=0)  # moved, never computed
    assert_close(left(x, act) + right(x, act), ffn(x, act), **ROUNDING)


@settings(deadline=None)
@given(ffn=blocks(), act=st.sampled_from(ACTIVATIONS))
def test_a_concatenation_is_the_sum_of_its_parts(ffn: FFN, act: torch.nn.Module) -> None:
    other = ffn.map(lambda _, t: 0.5 * t + 0.25)
    x = tokens(ffn)
    assert_close(ffn.concat(other, ffn)(x, act), 2 * ffn(x, act) + other(x, act), **ROUNDING)


@settings(deadline=None)
@given(ffn=blocks(), data=st.data())
def test_redraw_touches_the_named_neurons_alone(ffn: FFN, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, ffn.width - 1)))
    neurons = torch.tensor(sorted(chosen), dtype=torch.int64)
    rest = torch.tensor([j for j in range(ffn.width) if j not in chosen], dtype=torch.int64)
    new = ffn.redraw(neurons, lambda _, old: old + 7)
    assert new.down_bias is ffn.down_bias
    for name, tensor in ffn.matrices():
        if name != "down_bias":
            axis, made = NEURON_AXIS[name], dict(new.matrices())[name]
            assert_close(made.index_select(axis, rest), tensor.index_select(axis, rest), rtol=0, atol=0)  # same bits
            assert_close(made.index_select(axis, neurons), tensor.index_select(axis, neurons) + 7, rtol=0, atol=0)


@settings(deadline=None)
@given(ffn=blocks())
def test_identity_map_and_empty_replace_keep_every_object(ffn: FFN) -> None:
    for same in (ffn.map(lambda _, t: t), ffn.replace()):
        assert all(a is b for (_, a), (_, b) in zip(same.matrices(), ffn.matrices(), strict=True))


@settings(deadline=None)
@given(ffn=blocks(), data=st.data())
def test_a_matrix_of_another_shape_is_refused_by_name(ffn: FFN, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name, _ in ffn.matrices() if name != "up"]))
    wrong = dict(ffn.matrices())[name].new_zeros(13)
    with pytest.raises(ValueError, match=f"FFN: {name} must have shape .* Got \\(13,\\)"):
        ffn.replace(**{name: wrong})
