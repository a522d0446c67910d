"""The torch functions that models call, and what is computed by tables in the place of each.

A table sees one number at a time; what is around it (maxima, sums, means, products) stays arithmetic:

    softmax     e = exp(x - max x);  e * reciprocal(sum e)
    RMSNorm     x * rsqrt(mean x^2 + eps);  LayerNorm the same of x - mean x
    attention   softmax(q k / sqrt d + mask) v
    division    x * reciprocal(y), where a router brings its gates to a sum of 1

Sums and means are float32 for inputs of 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Protocol

import torch

Family = Literal["elementwise", "softmax", "norm", "attention", "division"]
MASKED = -65504.0
"""Scores this far below the largest were put there by a mask: they count as nothing, whatever the table says."""


class Look(Protocol):
    """Looks numbers up in the table of a function; `real` are those that count in a profile, None: all."""

    def __call__(self, name: str, x: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class StandIn:
    """What takes the place of one torch function.

    Args:
        name: of the function, for the record. family: with the place of the call, it gives the kind of site.
        tables: names of the functions whose tables a call needs, from its arguments; none: no table computes this one;
            None: such a call is nothing special (a square).
        compute: the same as the torch function, with `look` before its arguments.
    """

    name: str
    family: Family
    tables: Callable[..., tuple[str, ...] | None]
    compute: Callable[..., torch.Tensor]


@cache
def stand_ins() -> Mapping[Any, StandIn]:
    """Return the stand-in of every torch function that has one."""
    of, functional = torch.Tensor, torch.nn.functional
    found: dict[Any, StandIn] = {}
    for name, calls in {
        "silu": (functional.silu,),
        "mish": (functional.mish,),
        "softplus": (functional.softplus,),
        "hardswish": (functional.hardswish,),
        "sigmoid": (torch.sigmoid, of.sigmoid, functional.sigmoid, torch.special.expit),
        "tanh": (torch.tanh, of.tanh, functional.tanh),
        "erf": (torch.erf, of.erf, torch.special.erf),
    }.items():
        found |= dict.fromkeys(calls, _elementwise(name))
    gelu = StandIn("gelu", "elementwise", lambda *given, **named: (_gelu(*given, **named),), gelu_of)
    softmax = StandIn("softmax", "softmax", _softmax_tables, softmax_of)
    found |= {functional.gelu: gelu}
    found |= dict.fromkeys((functional.softmax, torch.softmax, of.softmax, torch.special.softmax), softmax)
    found |= dict.fromkeys((torch.rsqrt, of.rsqrt), StandIn("rsqrt", "norm", _always("rsqrt"), _rsqrt))
    found |= dict.fromkeys((torch.pow, of.pow, of.__pow__), StandIn("pow(-0.5)", "norm", _power_tables, _rsqrt))
    found[functional.layer_norm] = StandIn("layer_norm", "norm", _always("rsqrt"), layer_norm)
    found[functional.rms_norm] = StandIn("rms_norm", "norm", _always("rsqrt"), rms_norm)
    found[functional.scaled_dot_product_attention] = StandIn(
        "scaled_dot_product_attention", "attention", _always("exp", "reciprocal"), attention
    )
    for calls, inplace in (((torch.div, of.div, of.__truediv__), False), ((of.div_, of.__itruediv__), True)):
        divided = StandIn("division", "division", _division_tables, partial(_divided, inplace=inplace))
        found |= dict.fromkeys(calls, divided)
    return found


@cache
def without() -> Mapping[Any, str]:
    """Return the nonlinear torch functions that have no stand-in, with the names that the record gives them."""
    names = ("exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "sin", "cos", "tan", "reciprocal")
    found: dict[Any, str] = {}
    for name in names:
        found |= {getattr(torch, name): name, getattr(torch.Tensor, name): name}
    inplace = ("sigmoid_", "tanh_", "exp_", "rsqrt_", "sqrt_", "reciprocal_", "log_")
    found |= {getattr(torch.Tensor, name): name for name in inplace}
    functional = torch.nn.functional
    for name in ("elu", "selu", "celu", "logsigmoid", "glu", "softmin", "normalize", "group_norm", "log_softmax"):
        found[getattr(functional, name)] = name
    found |= {functional.multi_head_attention_forward: "multi_head_attention_forward"}
    return found


def gelu_of(look: Look, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Return GELU, by the table of the asked kind."""
    return look(_gelu(x, approximate), x)


def softmax_of(
    look: Look, x: torch.Tensor, dim: int, *rest: Any, dtype: torch.dtype | None = None, **_: Any
) -> torch.Tensor:
    """Return softmax over one dimension, in the dtype asked for."""
    dtype = next((item for item in rest if isinstance(item, torch.dtype)), dtype) or x.dtype
    wide = _wide(x.to(dtype))
    top = wide.detach().amax(dim, keepdim=True).clamp(min=torch.finfo(wide.dtype).min)
    below = wide - top
    real = below > MASKED
    up = torch.where(real, look("exp", below, real), 0.0)
    return (up * look("reciprocal", up.sum(dim, keepdim=True))).to(dtype)


def layer_norm(
    look: Look,
    x: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return layer norm over the last dimensions."""
    wide, dims = _wide(x), _last(normalized_shape)
    return _normed(look, wide - wide.mean(dims, keepdim=True), dims, weight, bias, eps).to(x.dtype)


def rms_norm(
    look: Look,
    x: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """Return RMS norm over the last dimensions."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _normed(look, _wide(x), _last(normalized_shape), weight, None, eps).to(x.dtype)


def attention(
    look: Look,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return attention [..., H, T, D]; masks, causality and grouped keys mean what they mean to torch."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
    if attn_mask is not None:
        hides = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if hides else scores + attn_mask
    weights = softmax_of(look, _wide(scores), -1).to(value.dtype)
    return torch.nn.functional.dropout(weights, dropout_p) @ value if dropout_p else weights @ value


def _normed(look: Look, x: torch.Tensor, dims: tuple[int, ...], weight: Any, bias: Any, eps: float) -> torch.Tensor:
    y = x * look("rsqrt", x.square().mean(dims, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _elementwise(name: str) -> StandIn:
    def compute(look: Look, x: torch.Tensor, *_: Any, inplace: bool = False, **__: Any) -> torch.Tensor:
        return x.copy_(look(name, x.clone())) if inplace else look(name, x)

    def tables(_x: torch.Tensor, *rest: Any, **named: Any) -> tuple[str, ...]:
        return () if set(named) - {"inplace"} or any(rest) else (name,)  # softplus of another slope is another function

    return StandIn(name, "elementwise", tables, compute)


def _always(*names: str) -> Callable[..., tuple[str, ...]]:
    return lambda *_, **__: names


def _gelu(_x: torch.Tensor, approximate: str = "none") -> str:
    return "gelu" if approximate == "none" else "gelu_tanh"


def _softmax_tables(_x: torch.Tensor, dim: int | None = None, *_: Any, **__: Any) -> tuple[str, ...]:
    return () if dim is None else ("exp", "reciprocal")


def _power_tables(_x: Any, exponent: Any = None, **_: Any) -> tuple[str, ...] | None:
    return ("rsqrt",) if isinstance(exponent, float) and exponent == -0.5 else None


def _division_tables(x: Any, by: Any = None, **_: Any) -> tuple[str, ...] | None:
    varies = all(isinstance(each, torch.Tensor) and each.is_floating_point() for each in (x, by)) and by.numel() > 1
    return ("reciprocal",) if varies else None  # by a constant, it is a product


def _divided(look: Look, x: torch.Tensor, by: torch.Tensor, *, inplace: bool) -> torch.Tensor:
    y = ((x.clone() if inplace else x) * look("reciprocal", _wide(by))).to(x.dtype)
    return x.copy_(y) if inplace else y  # a gradient needs what x was


def _rsqrt(look: Look, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return look("rsqrt", x)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _last(shape: Any) -> tuple[int, ...]:
    return tuple(range(-len(tuple(shape)), 0))
