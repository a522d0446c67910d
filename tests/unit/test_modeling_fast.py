"""`routed_experts` against the reference layer, and everything that a hand-written gradient can get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import gelu, silu
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from moesaic.ffn import FFN
from moesaic.modeling import fast
from moesaic.modeling.fast import routed_experts
from moesaic.moe import moe
from moesaic.routing import Routing

ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
"""Float64 sums of at most a few hundred terms of order 1, taken in another order."""
SINGLE = {"rtol": 1e-4, "atol": 1e-4}
"""The same in float32."""
HALF = {"rtol": 0.05, "atol": 0.05}
"""bfloat16 keeps 8 bits; values are of order 1, and each passes through three roundings."""


@dataclass(frozen=True)
class Case:
    """Random inputs of one layer; the gradients of the gates are compared through those of `router`."""

    x: Tensor
    router: Tensor
    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    top_k: int = 2
    gated: bool = True
    act: Callable[[Tensor], Tensor] = silu

    @classmethod
    def make(
        cls, tokens: int = 7, num_experts: int = 4, *, gated: bool = True, biased: bool = False,
        dtype: torch.dtype = torch.float64, seed: int = 0, hidden: int = 8, width: int = 16, top_k: int = 2,
    ) -> Case:  # fmt: skip
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            scale = math.sqrt(shape[-1]) if len(shape) == 3 else 1
            return (torch.randn(shape, generator=random, dtype=torch.float64) / scale).to(dtype).requires_grad_()

        rows = 2 * width if gated else width
        biases = (draw(num_experts, rows), draw(num_experts, hidden)) if biased else (None, None)
        return cls(
            draw(tokens, hidden), draw(num_experts, hidden), draw(num_experts, rows, hidden),
            draw(num_experts, hidden, width), *biases, top_k, gated,
        )  # fmt: skip

    def trained(self) -> list[Tensor]:
        tensors = (self.x, self.router, self.up, self.down, self.up_bias, self.down_bias)
        return [t for t in tensors if t is not None and t.requires_grad]

    def run(self, x: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        routing = Routing.from_logits(x @ self.router.T, self.top_k)
        return routed_experts(
            x, routing.ids_TK, routing.weights_TK, self.up, self.down, self.act, gated=self.gated,
            up_bias=self.up_bias, down_bias=self.down_bias,
        )  # fmt: skip

    def reference(self) -> Tensor:
        experts = [self.ffn(expert) for expert in range(len(self.up))]
        return moe(self.x, self.router, experts, self.act, top_k=self.top_k)

    def ffn(self, expert: int) -> FFN:
        halves = 2 if self.gated else 1
        rows = self.up[expert].chunk(halves)
        biases = [None] * halves if self.up_bias is None else self.up_bias[expert].chunk(halves)
        down_bias = None if self.down_bias is None else self.down_bias[expert]
        gate, gate_bias = (rows[0], biases[0]) if self.gated else (None, None)
        return FFN(rows[-1], self.down[expert], gate, gate_bias, biases[-1], down_bias)


def gradients(y: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad(y, tensors, weights, allow_unused=True, materialize_grads=True)


def compare(case: Case, tolerance: dict[str, float], run: Callable[[], Tensor] | None = None) -> None:
    got, want = (run or case.run)(), case.reference()
    assert_close(got, want, **tolerance)
    assert_close(gradients(got, case.trained()), gradients(want, case.trained()), **tolerance)


sizes = st.integers(1, 9).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, min(e, 4))))


@settings(deadline=None, max_examples=60)
@given(
    size=sizes, tokens=st.integers(0, 40), gated=st.booleans(), biased=st.booleans(), seed=st.integers(0, 2**32)
)  # fmt: skip
def test_equals_the_reference_layer(size: tuple[int, int], tokens: int, gated: bool, biased: bool, seed: int) -> None:
    num_experts, top_k = size
    compare(Case.make(tokens, num_experts, gated=gated, biased=biased, seed=seed, top_k=top_k), ROUNDING)


@pytest.mark.parametrize("block", [1, 16, 10**9])
def test_blocks_of_any_length_give_the_same(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(fast, "BLOCK", block)
    compare(Case.make(50, 6, biased=True), ROUNDING)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_those_of_finite_differences(gated: bool, biased: bool) -> None:
    case = Case.make(5, 3, gated=gated, biased=biased, hidden=3, width=2)
    ids, weights = torch.randint(3, (5, 2)), torch.rand(5, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weights: Tensor, up: Tensor, down: Tensor, *biases: Tensor) -> Tensor:
        up_bias, down_bias = biases or (None, None)
        return routed_experts(x, ids, weights, up, down, gelu, gated=gated, up_bias=up_bias, down_bias=down_bias)

    biases = [] if case.up_bias is None or case.down_bias is None else [case.up_bias, case.down_bias]
    assert gradcheck(run, (case.x, weights, case.up, case.down, *biases))


def test_experts_without_tokens_have_gradients_of_zero() -> None:
    case = Case.make(biased=True)
    weights = torch.rand(7, 1, dtype=torch.float64)
    y = routed_experts(
        case.x, torch.full((7, 1), 2), weights, case.up, case.down, silu, gated=True, up_bias=case.up_bias,
        down_bias=case.down_bias,
    )  # fmt: skip
    for grad in gradients(y, [case.up, case.down, case.up_bias, case.down_bias]):  # type: ignore[list-item]
        assert torch.count_nonzero(grad[[0, 1, 3]]) == 0
        assert torch.count_nonzero(grad[2]) > 0


@pytest.mark.parametrize("frozen", ["x", "router", "up", "down", "up_bias", "down_bias"])
@pytest.mark.parametrize("others", [True, False])
def test_frozen_parts_change_no_other_gradient(frozen: str, others: bool) -> None:
    case = Case.make(9, biased=True)
    for name in ("x", "router", "up", "down", "up_bias", "down_bias"):
        getattr(case, name).requires_grad_((name != frozen) == others)
    compare(case, ROUNDING)


@pytest.mark.parametrize(("trained", "products"), [("x", 2), ("down", 1), ("up", 2), ("up_bias", 1), ("router", 0)])
def test_what_is_frozen_costs_no_products(trained: str, products: int) -> None:
    case = Case.make(30, biased=True)
    for tensor in case.trained():
        tensor.requires_grad_(requires_grad=False)
    tensor = getattr(case, trained).requires_grad_()
    y = case.run()
    with torch.profiler.profile() as seen:
        gradients(y, [tensor])
    calls = sum(event.count for event in seen.key_averages() if event.key == "aten::mm")
    assert products * len(case.up) <= calls <= products * len(case.up) + 2  # two of the router


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_dtypes(dtype: torch.dtype) -> None:
    case, exact = Case.make(30, dtype=dtype), Case.make(30)
    assert case.run().dtype == dtype
    routing = Routing.from_logits(exact.x @ exact.router.T, 2)
    got, want = (
        routed_experts(c.x, routing.ids_TK, routing.weights_TK.to(wide).detach(), c.up, c.down, silu, gated=True)
        for c, wide in ((case, torch.float32), (exact, torch.float64))
    )
    tolerance = SINGLE if dtype == torch.float32 else HALF
    assert_close(got, want, check_dtype=False, **tolerance)
    pairs = zip(*(gradients(y, [c.x, c.up, c.down]) for y, c in ((got, case), (want, exact))), strict=True)
    for got_grad, want_grad in pairs:
        assert got_grad.dtype == dtype
        scale = float(want_grad.abs().max())
        assert_close(got_grad / scale, want_grad / scale, check_dtype=False, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_dtype_and_leaves_gradients_in_the_weights(dtype: torch.dtype) -> None:
    case = Case.make(30, dtype=torch.float32)
    ids, weights = torch.randint(4, (30, 2)), torch.rand(30, 2)
    x = case.x.detach().to(dtype).requires_grad_()
    inner: list[torch.dtype] = []

    def act(h: Tensor) -> Tensor:
        inner.append(h.dtype)
        return silu(h)

    want = routed_experts(case.x, ids, weights, case.up, case.down, silu, gated=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = routed_experts(x, ids, weights, case.up, case.down, act, gated=True)
    assert got.dtype == dtype
    assert set(inner) == {torch.bfloat16}
    assert_close(got, want, check_dtype=False, **HALF)
    for tensor, got_grad in zip((x, case.up, case.down), gradients(got, [x, case.up, case.down]), strict=True):
        assert got_grad.dtype == tensor.dtype


def test_a_backward_pass_inside_autocast_is_the_same() -> None:
    case = Case.make(30, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = case.run()
        inside = gradients(y, [case.up, case.down])
        y = case.run()
    assert_close(gradients(y, [case.up, case.down]), inside, rtol=0, atol=0)  # the same operations


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_bit(reentrant: bool) -> None:
    case = Case.make(30, biased=True)
    got = checkpoint(case.run, case.x, use_reentrant=reentrant)
    tensors = case.trained()
    if reentrant:  # which supports .backward() alone
        weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view(got.shape)
        got.backward(weights)
        grads = tuple(t.grad for t in tensors)
    else:
        grads = gradients(got, tensors)
    assert_close(grads, gradients(case.run(), tensors), rtol=0, atol=0)  # the same operations


def test_no_grad_and_inference_keep_nothing() -> None:
    case = Case.make()
    want = case.run().detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = case.run()
        assert not got.requires_grad
        assert_close(got, want, rtol=0, atol=0)  # the same operations


def test_repetition_gives_the_same_bits() -> None:
    case = Case.make(300, dtype=torch.float32, biased=True)
    first, second = (case.run() for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)
    assert_close(gradients(first, case.trained()), gradients(second, case.trained()), rtol=0, atol=0)


def test_layouts_in_memory_do_not_matter() -> None:
    case = Case.make(9)
    strided = replace(
        case,
        x=case.x.detach().T.contiguous().T.requires_grad_(),
        up=case.up.detach().mT.contiguous().mT.requires_grad_(),
        down=case.down.detach().repeat_interleave(2, 0)[::2].requires_grad_(),
    )
    compare(strided, ROUNDING)
    y = case.run()
    assert_close(
        torch.autograd.grad(y.sum(), case.up), torch.autograd.grad(case.reference().sum(), case.up), **ROUNDING
    )


def test_a_trained_activation_is_trained() -> None:
    case = Case.make(9)
    slope = torch.nn.PReLU(dtype=torch.float64)
    case = replace(case, act=slope)
    got, want = case.run(), case.reference()
    tensors = [*case.trained(), slope.weight]
    assert_close(gradients(got, tensors), gradients(want, tensors), **ROUNDING)


def test_an_activation_may_change_the_width() -> None:
    case = Case.make(9)
    interleaved = replace(
        case,
        gated=False,
        act=lambda h: silu(h[:, ::2]) * h[:, 1::2],
        up=torch.stack(case.up.detach().chunk(2, 1), 2).flatten(1, 2).requires_grad_(),
    )
    assert_close(interleaved.run(), case.reference(), **ROUNDING)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tokens", [0, 30])
def test_the_way_of_grouped_mm_is_the_same_function(monkeypatch: pytest.MonkeyPatch, biased: bool, tokens: int) -> None:
    case = Case.make(tokens, 5, biased=biased)
    monkeypatch.setattr(fast, "_trains", lambda *_: True)
    compare(case, ROUNDING)
    case = Case.make(tokens, 5, biased=biased, dtype=torch.bfloat16)
    stepwise = case.run()
    monkeypatch.setattr(fast, "_can_group", lambda *_: True)
    grouped = case.run()
    assert_close(grouped, stepwise, **HALF)
    assert_close(gradients(grouped, case.trained()), gradients(stepwise, case.trained()), **HALF)


@pytest.mark.parametrize(("dtype", "whole"), [(torch.bfloat16, True), (torch.float32, False)])
def test_compiled(dtype: torch.dtype, whole: bool) -> None:
    """In bfloat16 without a break in the graph; in other dtypes the layer is one break."""
    case = Case.make(12, 3, dtype=dtype)
    torch._dynamo.reset()
    compiled = torch.compile(case.run, backend="aot_eager", fullgraph=whole)
    tolerance = HALF if dtype == torch.bfloat16 else SINGLE
    got, want = compiled(), case.run()
    assert_close(got, want, **tolerance)
    assert_close(gradients(got, case.trained()), gradients(want, case.trained()), **tolerance)


def test_meta_tensors_give_a_shape() -> None:
    case = Case.make()
    x, ids, weights = (torch.empty(shape, device="meta") for shape in ((7, 8), (7, 2), (7, 2)))
    y = routed_experts(x, ids.long(), weights, case.up.to("meta"), case.down.to("meta"), silu, gated=True)
    assert y.device.type == "meta"
    assert y.shape == (7, 8)
