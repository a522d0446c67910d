"""`moesaic nli table` and `moesaic nli evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moesaic.cli import run
from moesaic.nli import Table, table_of


def test_table_is_searched_printed_written_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tanh.json"
    args = ["nli", "table", "tanh", "--low", "-4", "--high", "4", "--format", "int8.4", "--points", "5", "--bins", "4"]
    assert run([*args, "--out", str(out)]) == 0
    assert "proved best" in capsys.readouterr().out
    table = Table.from_json(json.loads(out.read_text()))
    assert (table.format, len(table.cuts), table.bins, table.cuts[0]) == ("int8.4", 5, 4, -4)
    assert run(["nli", "evaluate", str(out), "--no-baselines", "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert 0 < errors["rounding alone"]["mean_relative"] <= errors["nli"]["mean_relative"] < 0.5
    assert run([*args, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert Table.from_json(record["table"]) == table
    assert record["gap"] == 0


def test_range_reduction_and_shipped_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nli", "table", "rsqrt", "--range-reduction", "--quick", "--points", "5", "--json"]) == 0
    table = Table.from_json(json.loads(capsys.readouterr().out)["table"])
    assert (table.reduction, table.cuts[0], table.cuts[-1]) == ("rsqrt", 1, 4)
    assert run(["nli", "evaluate", "rsqrt_reduced", "--no-baselines"]) == 0
    assert "rounding alone" in capsys.readouterr().out
    assert table_of("rsqrt_reduced").reduction == "rsqrt"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["table", "sillu"], 1, "Got 'sillu'. Did you mean 'silu'?"),
        (["table", "silu", "--low", "2", "--high", "1"], 1, "a range must ascend. Got 2 to 1"),
        (["table", "silu", "--format", "int8.4", "--points", "1000"], 1, "M, the cut points, must be 3 to the grid's"),
        (["table", "log", "--low", "-1", "--high", "1"], 1, "log: it must be finite in the range"),
        (["table", "silu", "--range-reduction"], 1, "range reduction must be of rsqrt, sqrt, reciprocal"),
        (["table", "silu", "--points", "x"], 2, "--points: it must be a whole number"),
        (["evaluate", "silo"], 1, "must be one of"),
        (["evaluate", "missing.json"], 1, "missing.json"),
    ],
)
def test_one_message_for_each_mistake(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["nli", *args]) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
