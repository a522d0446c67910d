"""The routed experts of a mixture-of-experts layer: tokens sorted by expert, one product per expert, nothing wasted.

Needs torch alone: moesaic copies this file as it is into the model folders that it writes.

T tokens, D hidden size, f width of an expert, E experts, K experts per token, S = T*K pairs of a token and an expert
in the order of the experts, N rows of `up`: f, or 2f with a gate.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]
BLOCK = 512
"""Rows that are carried through their experts together: few calls for few tokens, and for many they stay in cache."""

PIECE = 1 << 19
"""Bytes of a gradient that are written at once where tokens are few: half of a core's second-level cache."""


class _Experts(NamedTuple):
    up_END: Tensor
    down_EDf: Tensor
    up_bias_EN: Tensor | None
    down_bias_ED: Tensor | None

    def to(self, dtype: torch.dtype) -> _Experts:
        return _Experts(*(None if t is None else t.to(dtype) for t in self))  # type: ignore[arg-type]


def routed_experts(
    x_TD: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    down: Tensor,
    act: Activation,
    *,
    gated: bool,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    """Return `sum_k weights[t, k] * expert[ids[t, k]](x[t])`, shape [T, D], in the dtype of x.

    An expert is `down @ act(up @ x)`, or with a gate `down @ (act(gate @ x) * (up @ x))`. Gradients reach x, weights
    and experts, and what is frozen costs nothing. The same inputs give the same bits.

    Args:
        x_TD: tokens. ids_TK: the experts of each token, 0..E-1. weights_TK: their gates; the sum over k is taken in the
            wider dtype of the two, all else in that of the experts (under autocast, in its).
        up: [E, f, D], or with a gate [E, 2f, D], first the rows of the gate. down: [E, D, f].
        act: works on each row by itself; without a gate it may change the width from N to f.
        up_bias: [E, N]. down_bias: [E, D], multiplied by the gates like the rest of the expert.
    """
    device, dtype = x_TD.device.type, x_TD.dtype
    experts, activate = _Experts(up, down, up_bias, down_bias), partial(_gated, act) if gated else act
    if device == "meta":
        return torch.empty_like(x_TD)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        experts = experts.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        y_TD = _choose(experts, activate)(x_TD.to(experts.up_END.dtype), ids_TK, weights_TK, experts, activate)
    return y_TD.to(dtype)


def _choose(experts: _Experts, activate: Activation) -> Callable[..., Tensor]:
    if _can_group(experts.up_END, experts.down_EDf) or _trains(activate, experts.up_END):
        return _stepwise
    return torch.compiler.disable(_fused) if torch.compiler.is_compiling() else _fused


def _gated(act: Activation, h_SN: Tensor) -> Tensor:
    gate_Sf, up_Sf = h_SN.chunk(2, -1)
    return act(gate_Sf) * up_Sf


def _can_group(*weights: Tensor) -> bool:
    """Whether to leave the loop over experts to `grouped_mm`, which takes bfloat16 and sizes of whole 16 bytes.

    On a CPU our own loop is faster, but can't be compiled.
    """
    if any(weight.dtype != torch.bfloat16 or any(size % 8 for size in weight.shape[1:]) for weight in weights):
        return False
    if "grouped_mm" not in dir(functional):  # torch before 2.10
        return False
    if weights[0].device.type == "cuda":
        return torch.cuda.get_device_capability(weights[0].device) >= (8, 0)
    return torch.compiler.is_compiling()


def _trains(activate: Activation, up_END: Tensor) -> bool:
    """Whether the activation has trainable parameters of its own, to which only autograd knows the way."""
    return torch.is_grad_enabled() and activate(up_END.new_zeros(1, up_END.shape[1])).requires_grad


class _Order(NamedTuple):
    """The S pairs sorted by expert: the token of each, its place in [T, K], and the way back."""

    token_S: Tensor
    pair_S: Tensor
    back_TK: Tensor


def _order(ids_TK: Tensor) -> _Order:
    pair_S = ids_TK.flatten().argsort(stable=True)
    back_S = torch.empty_like(pair_S).scatter_(0, pair_S, torch.arange(len(pair_S), device=pair_S.device))
    return _Order(pair_S // ids_TK.shape[1], pair_S, back_S.view(ids_TK.shape))


class _Block(NamedTuple):
    """Neighbouring rows of the sorted pairs, the experts they belong to, and how many belong to each."""

    rows: slice
    experts: list[int]
    sizes: list[int]


def _blocks(ids_TK: Tensor, num_experts: int) -> list[_Block]:
    """Cut the sorted pairs between experts, as often as `BLOCK` allows. Experts without tokens are in no block."""
    blocks: list[_Block] = []
    first, experts, sizes = 0, [], []
    counts = torch.bincount(ids_TK.flatten(), minlength=num_experts).tolist()
    used = [expert for expert, count in enumerate(counts) if count]
    for expert in used:
        experts.append(expert)
        sizes.append(counts[expert])
        if (rows := sum(sizes)) >= BLOCK or expert == used[-1]:
            blocks.append(_Block(slice(first, first + rows), experts, sizes))
            first, experts, sizes = first + rows, [], []
    return blocks


def _fused(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: _Experts, activate: Activation) -> Tensor:
    order, blocks = _order(ids_TK), _blocks(ids_TK, len(experts.up_END))
    trained = (x_TD, weights_TK, *experts)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in trained):
        return cast("Tensor", _Fused.apply(activate, blocks, order, *trained))  # type: ignore[no-untyped-call]
    out_SD, _ = _run(x_TD, experts, order, blocks, activate, keep=False)
    return _combine(out_SD, order.back_TK, weights_TK)


def _run(
    x_TD: Tensor, experts: _Experts, order: _Order, blocks: list[_Block], activate: Activation, *, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the experts' outputs [S, D] and, where `keep`, the activation's input of each block."""
    out_SD, kept = x_TD.new_empty(len(order.token_S), x_TD.shape[1]), []
    for block in blocks:
        x_SD = x_TD.index_select(0, order.token_S[block.rows])
        h_SN = x_TD.new_empty(len(x_SD), experts.up_END.shape[1])
        _multiply(block, x_SD, experts.up_END.mT, h_SN, experts.up_bias_EN)
        _multiply(block, activate(h_SN), experts.down_EDf.mT, out_SD[block.rows], experts.down_bias_ED)
        kept += [h_SN] if keep else []
    return out_SD, kept


def _multiply(block: _Block, a_SN: Tensor, weight_ENM: Tensor, out_SM: Tensor, bias_EM: Tensor | None = None) -> Tensor:
    """Write each expert's rows times its weight, plus its bias."""
    for expert, a, out in zip(block.experts, a_SN.split(block.sizes), out_SM.split(block.sizes), strict=True):
        if bias_EM is None:
            torch.mm(a, weight_ENM[expert], out=out)
        else:
            torch.addmm(bias_EM[expert], a, weight_ENM[expert], out=out)
    return out_SM


def _combine(out_SD: Tensor, back_TK: Tensor, weights_TK: Tensor | None = None) -> Tensor:
    """Return the (weighted) sum of each token's rows: as a bag of embeddings, which gathers and adds in one pass."""
    dtype = out_SD.dtype if weights_TK is None else torch.promote_types(out_SD.dtype, weights_TK.dtype)
    gates_TK = None if weights_TK is None else weights_TK.to(dtype)
    bag_TD = functional.embedding_bag(back_TK, out_SD.to(dtype), mode="sum", per_sample_weights=gates_TK)
    return bag_TD.to(out_SD.dtype)


class _Gradients(NamedTuple):
    up_END: Tensor | None
    down_EDf: Tensor | None
    up_bias_EN: Tensor | None
    down_bias_ED: Tensor | None


class _Fused(torch.autograd.Function):
    """What autograd would waste is saved: a gradient of the size of all experts for each of them, and activations.

    Only the activation's input is kept. Its output is computed again, which is cheap beside the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activate: Activation,
        blocks: list[_Block],
        order: _Order,
        x_TD: Tensor,
        weights_TK: Tensor,
        *experts: Tensor | None,
    ) -> Tensor:
        out_SD, kept = _run(x_TD, _Experts(*experts), order, blocks, activate, keep=True)  # type: ignore[arg-type]
        ctx.activate, ctx.blocks = activate, blocks
        ctx.save_for_backward(*order, x_TD, weights_TK, *experts, out_SD, *kept)
        return _combine(out_SD, order.back_TK, weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: gradient checkpointing gives them out once
        token_S, pair_S, back_TK, x_TD, weights_TK, *experts, out_SD = saved[:10]
        up_END, down_EDf = experts[:2]
        grads = _Gradients(*map(_empty, experts, ctx.needs_input_grad[5:]))
        dx_SD = _empty(out_SD, ctx.needs_input_grad[3])
        dweights_S = _empty(weights_TK.flatten(), ctx.needs_input_grad[4])
        weights_S1 = weights_TK.reshape(-1, 1).index_select(0, pair_S)
        for block, h_SN in zip(ctx.blocks, saved[10:], strict=True):
            token = token_S[block.rows]
            dout_SD = dy_TD.index_select(0, token)
            if dweights_S is not None:
                dweights_S[block.rows] = (dout_SD * out_SD[block.rows]).sum(-1, dtype=weights_TK.dtype)
            dout_SD *= weights_S1[block.rows]
            if dx_SD is not None or any(grad is not None for grad in grads):
                dx = None if dx_SD is None else dx_SD[block.rows]
                _pull(block, dout_SD, h_SN, x_TD.index_select(0, token), ctx.activate, up_END, down_EDf, grads, dx)
        _zero_unused(grads, ctx.blocks)
        dx_TD = None if dx_SD is None else _combine(dx_SD, back_TK)
        dweights_TK = None if dweights_S is None else dweights_S[back_TK]
        return None, None, None, dx_TD, dweights_TK, *grads


def _pull(
    block: _Block,
    dout_SD: Tensor,
    h_SN: Tensor,
    x_SD: Tensor,
    activate: Activation,
    up_END: Tensor,
    down_EDf: Tensor,
    grads: _Gradients,
    dx_SD: Tensor | None,
) -> None:
    """Pull the gradient of a block's outputs back through its experts, and write what is wanted."""
    leaf_SN = h_SN.detach().requires_grad_()
    with torch.enable_grad():
        inner_Sf = activate(leaf_SN)
    _outer(block, dout_SD, inner_Sf.detach(), grads.down_EDf, grads.down_bias_ED)
    if dx_SD is None and grads.up_END is None and grads.up_bias_EN is None:
        return
    dinner_Sf = _multiply(block, dout_SD, down_EDf, torch.empty_like(inner_Sf))
    (dh_SN,) = torch.autograd.grad(inner_Sf, leaf_SN, dinner_Sf)
    if dx_SD is not None:
        _multiply(block, dh_SN, up_END, dx_SD)
    _outer(block, dh_SN, x_SD, grads.up_END, grads.up_bias_EN)


def _empty(like: Tensor | None, wanted: bool) -> Tensor | None:
    return torch.empty_like(like) if wanted and like is not None else None


def _outer(block: _Block, left_SN: Tensor, right_SM: Tensor, out_ENM: Tensor | None, sum_EN: Tensor | None) -> None:
    """Write the gradients of each expert's weight and bias, where they are wanted."""
    for expert, left, right in zip(block.experts, left_SN.split(block.sizes), right_SM.split(block.sizes), strict=True):
        if out_ENM is not None:
            _product(left.T, right, out_ENM[expert])
        if sum_EN is not None:
            torch.sum(left, 0, out=sum_EN[expert])


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write `left @ right`; from few columns of `left` in pieces.

    There MKL passes twice over the result, which is most of the cost: pieces that fit the cache reach memory once
    (float32, 4 columns: 6 instead of 9 ms for 45 MB).
    """
    pieces = out.nbytes // PIECE if 1 < left.shape[1] < 128 and out.dtype == torch.float32 else 0
    for part, rows in zip(left.chunk(pieces or 1), out.chunk(pieces or 1), strict=True):
        torch.mm(part, right, out=rows)


def _zero_unused(grads: _Gradients, blocks: list[_Block]) -> None:
    used = {expert for block in blocks for expert in block.experts}
    for grad in grads:
        if grad is not None:
            for expert in set(range(len(grad))) - used:
                grad[expert].zero_()


class _Take(torch.autograd.Function):
    """Rows by index; row i of the source goes to the rows `back[i]`, so its gradient is gathered, in fixed order."""

    @staticmethod
    def forward(ctx: Any, source_NC: Tensor, index_S: Tensor, back_NK: Tensor) -> Tensor:
        ctx.save_for_backward(back_NK)
        return source_NC.index_select(0, index_S)

    @staticmethod
    def backward(ctx: Any, grad_SC: Tensor) -> tuple[Tensor, None, None]:
        (back_NK,) = ctx.saved_tensors
        return grad_SC.index_select(0, back_NK.flatten()).unflatten(0, back_NK.shape).sum(1), None, None


def _stepwise(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, experts: _Experts, activate: Activation) -> Tensor:
    """Compute all pairs step by step under autograd: for `grouped_mm`, for compilers, for trained activations."""
    token_S, pair_S, back_TK = _order(ids_TK)
    id_S = ids_TK.flatten().index_select(0, pair_S)
    x_SD = _Take.apply(x_TD, token_S, back_TK)  # type: ignore[no-untyped-call]
    inner_Sf = activate(_linear(x_SD, id_S, experts.up_END, experts.up_bias_EN))
    out_SD = _linear(inner_Sf, id_S, experts.down_EDf, experts.down_bias_ED)
    out_SD = _Take.apply(out_SD, back_TK.flatten(), pair_S[:, None])  # type: ignore[no-untyped-call]
    y_TD: Tensor = (out_SD.unflatten(0, ids_TK.shape) * weights_TK[..., None]).sum(1)
    return y_TD


def _linear(x_SM: Tensor, id_S: Tensor, weight_ENM: Tensor, bias_EN: Tensor | None) -> Tensor:
    """Return each row times the weight of its expert, plus its bias; rows come sorted by expert."""
    ends_E = torch.searchsorted(id_S, torch.arange(len(weight_ENM), device=id_S.device), right=True, out_int32=True)
    if _can_group(weight_ENM):
        y_SN = functional.grouped_mm(x_SM, weight_ENM.mT, offs=ends_E)
    else:
        parts = x_SM.tensor_split(ends_E[:-1].long().cpu())
        y_SN = torch.cat([functional.linear(*pair) for pair in zip(parts, weight_ENM.unbind(0), strict=True)])
    if bias_EN is not None:  # a product, because the gradient of a gather adds up in no fixed order on a GPU
        y_SN = y_SN + functional.one_hot(id_S, len(bias_EN)).to(bias_EN.dtype) @ bias_EN
    return y_SN
