"""Expert-ensemble self-distillation: how a sparse model is drawn to the dense ensemble of its experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, cast

from moesaic.lazy import torch
from moesaic.method import Method, number
from moesaic.routing import wide

ROOM = 1 << 22
"""Numbers that are widened at once; 16 MB of float32."""


@dataclass(frozen=True)
class Eesd(Method):
    """Makes the sparse model follow the dense ensemble of its own experts, averaged over past steps.

    The teacher has the student's weights, averaged over its steps, and sends every token to all experts:
    `y(x) = sum over all e of softmax(R x)_e E_e(x)`. It costs a dense forward pass and a copy of the weights. Known
    from its authors: alone it is no stable gain; it goes with cluster-aware experts.

    Reference: Chu et al., CVPR 2026, cluster-aware upcycling, arXiv 2604.13508.
    Deviates: the paper gives no form, weight or decay; reconstructed here. KL(teacher || student) per token for
    language models, 1 - cos of final features for encoders, weight 0.1, decay 0.999, no warm-up of the decay.

    Args:
        weight: factor of the model-level term in the training loss.
        decay: share of itself that the teacher keeps at each optimizer step, fraction.
        match: `kl` of logits, `cosine` of final features, or `auto`: kl where the model has logits of tokens.
        temperature: of both softmaxes in kl, which is multiplied by its square.
        layer_weight: factor of the mean squared difference between what the routed experts return in student and
            teacher, mean over layers; 0 is off.
        weighting: of tokens: `equal`, or by their routing `entropy` over ln E, mean over layers, which says where a
            few experts stand least for all.

    >>> Eesd(weight=0.2).settings()["decay"]
    0.999
    """

    kind: ClassVar[str] = "distillation"

    weight: float = number(0.1, low=0.0, high=1e6)
    decay: float = number(0.999, low=0.0, high=1.0)
    match: Literal["kl", "cosine", "auto"] = "auto"
    temperature: float = number(1.0, low=1e-3, high=1e3)
    layer_weight: float = number(0.0, low=0.0, high=1e6)
    weighting: Literal["equal", "entropy"] = "equal"


def kl(
    student_TV: torch.Tensor,
    teacher_TV: torch.Tensor,
    weight_T: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return `sum_t weight_t KL(teacher_t || student_t) temperature^2`, in nats, float32 or wider.

    Beside the two logits it holds their gradient, once, in the dtype of the student's, and a few times `ROOM` numbers;
    tokens of weight zero cost nothing.

    Args:
        student_TV, teacher_TV: logits; gradients reach the student's alone.
        weight_T: 1/T each where None.
    """
    weight_T = _equal(student_TV) if weight_T is None else weight_T
    return cast("torch.Tensor", _kl().apply(student_TV, teacher_TV.detach(), weight_T, temperature))


def cosine(student_TD: torch.Tensor, teacher_TD: torch.Tensor, weight_T: torch.Tensor | None = None) -> torch.Tensor:
    """Return `sum_t weight_t (1 - cos(student_t, teacher_t))`, float32 or wider; weights are 1/T where None."""
    weight_T = _equal(student_TD) if weight_T is None else weight_T
    similar_T = torch.cosine_similarity(wide(student_TD), wide(teacher_TD.detach()), dim=-1)
    return (weight_T * (1 - similar_T)).sum()


def mean_square(
    student_TD: torch.Tensor, teacher_TD: torch.Tensor, weight_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `sum_t weight_t |student_t - teacher_t|^2 / D`, float32 or wider; weights are 1/T where None."""
    weight_T = _equal(student_TD) if weight_T is None else weight_T
    return (weight_T * (wide(student_TD) - wide(teacher_TD.detach())).square().mean(-1)).sum()


def _equal(rows_TN: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(rows_TN.dtype, torch.float32)
    return torch.full((len(rows_TN),), 1 / max(len(rows_TN), 1), dtype=wide, device=rows_TN.device)


def _kl_of(
    student_TV: torch.Tensor, teacher_TV: torch.Tensor, weight_T: torch.Tensor, temperature: float, *, graded: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the loss and its gradient at the student's logits, some tokens at a time."""
    total = weight_T.new_zeros(())
    grad_TV = torch.zeros_like(student_TV) if graded else None
    for part in weight_T.nonzero().flatten().split(max(1, ROOM // student_TV.shape[1])):
        log_q, log_p = (
            (wide(logits.index_select(0, part)) / temperature).log_softmax(-1) for logits in (student_TV, teacher_TV)
        )
        p, weight_T1 = log_p.exp(), weight_T[part, None]
        gap = torch.where(p > 0, log_p - log_q, 0.0)  # a teacher's logit of -inf says nothing
        total += (weight_T1 * p * gap).sum() * temperature**2
        if grad_TV is not None:
            grad_TV[part] = ((log_q.exp() - p) * (weight_T1 * temperature)).to(grad_TV.dtype)
    return total, grad_TV


@cache
def _kl() -> Any:
    """Return the differentiable function; made at first use, since listing methods imports no torch."""

    class Kl(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, t: float) -> Any:
            total, grad = _kl_of(student, teacher, weight, t, graded=ctx.needs_input_grad[0])
            if grad is not None:
                ctx.save_for_backward(grad)
            return total

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *outer: torch.Tensor) -> Any:
            (grad,) = ctx.saved_tensors
            return grad * outer[0].to(grad.dtype), None, None, None

    return Kl
