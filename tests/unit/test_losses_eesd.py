"""KL, cosine and mean square: against plain formulas, finite differences, and in pieces."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div
from torch.testing import assert_close

from moesaic.losses import eesd
from moesaic.losses.eesd import Eesd, cosine, kl, mean_square

ROUNDING = {"rtol": 1e-12, "atol": 1e-13}
"""float64: some hundred additions in another order."""


def logits(rows: int = 6, width: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, width, generator=generator, dtype=torch.float64)


def test_kl_is_the_formula_of_torch() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    want = kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
    assert_close(kl(student, teacher), want, **ROUNDING)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_of_kl_is_that_of_finite_differences(temperature: float) -> None:
    student = logits(seed=1).requires_grad_()
    weight_T = torch.tensor([0.5, 0.0, 0.25, 0.1, 0.1, 0.05], dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: kl(x, logits(seed=2), weight_T, temperature), student)


@pytest.mark.parametrize("measure", [cosine, mean_square])
def test_gradient_of_features_is_that_of_finite_differences(measure: object) -> None:
    student = logits(seed=1).requires_grad_()
    torch.autograd.gradcheck(lambda x: measure(x, logits(seed=2)), student)  # type: ignore[operator]


@pytest.mark.parametrize("measure", [kl, cosine, mean_square])
def test_equal_student_and_teacher_differ_by_nothing_and_pull_nowhere(measure: object) -> None:
    student = logits().requires_grad_()
    loss = measure(student, student.detach().clone())  # type: ignore[operator]
    loss.backward()
    assert_close(loss.detach(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    assert_close(student.grad, torch.zeros_like(student), **ROUNDING)


def test_kl_in_pieces_is_kl_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, found = logits(seed=2), []
    for room in (1, 20, 1 << 20):
        monkeypatch.setattr(eesd, "ROOM", room)
        student = logits(seed=1).requires_grad_()
        loss = kl(student, teacher, temperature=2.0)
        loss.backward()
        found.append((loss.detach(), student.grad))
    for loss, grad in found[1:]:
        assert_close(loss, found[0][0], **ROUNDING)
        assert_close(grad, found[0][1], rtol=0, atol=0)  # each row is by itself


def test_tokens_of_no_weight_count_nothing_whatever_they_hold() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    student[2], teacher[2] = float("nan"), float("inf")
    keep = torch.tensor([0, 1, 3, 4, 5])
    weight_T = torch.zeros(6, dtype=torch.float64).index_fill(0, keep, 1 / 5)
    leaf = student.clone().requires_grad_()
    loss = kl(leaf, teacher, weight_T)
    loss.backward()
    assert_close(loss.detach(), kl(student[keep], teacher[keep]), **ROUNDING)
    assert_close(leaf.grad[2], torch.zeros(9, dtype=torch.float64), rtol=0, atol=0)  # type: ignore[index]


def test_impossible_words_of_the_teacher_say_nothing() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    masked = teacher.clone()
    masked[:, 0] = -torch.inf
    p = masked.softmax(-1)[:, 1:]
    want = (p * (p.log() - student.log_softmax(-1)[:, 1:])).sum(-1).mean()
    assert_close(kl(student, masked), want, **ROUNDING)


def test_no_tokens_give_zero_with_a_gradient() -> None:
    student = logits().requires_grad_()
    kl(student, logits(seed=2), torch.zeros(6, dtype=torch.float64)).backward()
    assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=0)


def test_bfloat16_logits_are_compared_in_float32() -> None:
    student, teacher = logits(seed=1).bfloat16(), logits(seed=2).bfloat16()
    loss = kl(student, teacher)
    assert loss.dtype == torch.float32
    assert_close(loss.double(), kl(student.double(), teacher.double()), rtol=1e-5, atol=0)  # float32 softmax


@pytest.mark.parametrize(("field", "value"), [("decay", 1.1), ("weight", -1.0), ("match", "mse"), ("weighting", "x")])
def test_settings_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^eesd: {field} must be "):
        Eesd(**{field: value})  # type: ignore[arg-type]
