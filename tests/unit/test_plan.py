"""The plan adds up, or says what does not; its digest knows all that decides the bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan import ITEM_BYTES, Copy, Fill, Fold, Output, Piece, Plan, Routed, Router, Rows, Shared, TensorInfo

INFO = TensorInfo("F32", (4, 2))


def copied(name: str, source: str = "w") -> Output:
    return Output(name, INFO, (Piece(Copy(Rows(source, 0, 4)), INFO.nbytes),))


@settings(deadline=None)
@given(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 99), max_size=4))
def test_sizes(dtype: str, shape: list[int]) -> None:
    info = TensorInfo(dtype, tuple(shape))
    assert info.nbytes == info.count * ITEM_BYTES[dtype]
    assert TensorInfo(dtype, (3, *shape)).nbytes == 3 * info.nbytes


def test_a_plan_that_adds_up() -> None:
    plan = Plan({"w": INFO, "old": INFO}, {}, (copied("a"), copied("b")), {"old": "not needed"})
    assert (plan.bytes_written, plan.bytes_read) == (64, 32)


def test_every_problem_is_named_at_once() -> None:
    short = Output("short", INFO, (Piece(Fill(0.0), 8),))
    with pytest.raises(PlanError) as caught:
        Plan({"w": INFO, "lost": INFO}, {}, (copied("a"), copied("a"), short), {"w": "dropped and used"})
    message = str(caught.value)
    assert "a: an output tensor must be written once. Got two." in message
    assert "short: its pieces must fill its 32 bytes." in message
    assert "lost: a source tensor must be used or listed as dropped" in message
    assert "w: a source tensor must be used or listed as dropped" in message


def test_tensors_of_a_sparse_ffn_count_as_used() -> None:
    made = Output("e", INFO, (Piece(Routed(0, 0, ("up",)), INFO.nbytes),))
    assert Plan({"w": INFO}, {0: {"up": Rows("w", 0, 4)}}, (made,)).dropped == {}


ORIGINS = (
    Copy(Rows("w", 0, 4)), Copy(Rows("w", 0, 3)), Fold(Rows("w", 0, 4)), Fold(Rows("w", 0, 4), scale=2.0),
    Fold(Rows("w", 0, 4), offset=1.0), Fold(Rows("w", 0, 4), rotary=(4, 2)), Fill(0.0), Fill(1.0),
    Routed(0, 0, ("up",)), Routed(0, 1, ("up",)), Routed(1, 0, ("up",)), Routed(0, 0, ("gate",)),
    Routed(0, 0, ("up",), transposed=True), Shared(0, ("up",)), Router(0), Router(1),
)  # fmt: skip


def test_the_digest_tells_any_two_plans_apart() -> None:
    base = Plan({}, {}, ())
    plans = [replace(base, outputs=(Output("x", INFO, (Piece(origin, 32),)),)) for origin in ORIGINS[6:]]
    used = [Plan({"w": INFO}, {}, (Output("x", INFO, (Piece(origin, 32),)),)) for origin in ORIGINS[:6]]
    digests = [plan.digest(seed=seed) for plan in (*plans, *used) for seed in (0, 1)]
    assert len(set(digests)) == 2 * len(ORIGINS)


def test_the_digest_is_the_same_on_every_machine() -> None:
    plan = Plan({"w": INFO}, {}, (copied("a"),))
    assert plan.digest(seed=0) == "3c2b8f56884a7809a8882afbcf1a48e7df19ad789588087a9e1a4f48f50fb0f0"
    assert plan.digest(b=1, a=2) == plan.digest(a=2, b=1)
