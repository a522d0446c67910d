"""Which GPU a worker of a study sees."""

from __future__ import annotations

import pytest

from moesaic.studies.working import gpu


@pytest.mark.parametrize(
    ("visible", "count", "seen"),
    [
        (None, 2, ["0", "1", "0", "1"]),
        (None, 8, ["0", "1", "2", "3"]),
        ("3,5", 2, ["3", "5", "3", "5"]),
        (" 3, 5", 2, ["3", "5", "3", "5"]),
        ("GPU-8932f937,GPU-4d5e6f70", 2, ["GPU-8932f937", "GPU-4d5e6f70"] * 2),
        ("1,-1,2", 1, ["1"] * 4),
        (None, 0, [None] * 4),
        ("", 0, [None] * 4),
        ("-1", 0, [None] * 4),
        ("9", 0, [None] * 4),
    ],
    ids=str,
)
def test_workers_share_the_gpus_that_their_process_sees(
    visible: str | None, count: int, seen: list[str | None]
) -> None:
    assert [gpu(worker, visible, count) for worker in range(4)] == seen
