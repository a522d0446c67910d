"""Rows of files: every kind, fields of any length, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesaic.errors import TrainingError
from moesaic.training.tasks.tables import open_table


def test_tables_of_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.csv").write_text('x,y\n1,"two\nlines"\n')
    (tmp_path / "two.tsv").write_text('x\ty\n2\t"raw\n')
    (tmp_path / "three.json").write_text('[{"x": "3"}]')
    (tmp_path / "four.jsonl").write_text('{"x": "4"}\n\n{"x": "5", "label": "own"}\n')
    table = open_table(tmp_path)
    assert table.column("x") == ["1", "4", "5", "3", "2"]
    assert table.column("y") == ["two\nlines", None, None, None, '"raw']
    assert table.groups("label") == (("a", "own"), [0, -1, 1, -1, -1])


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_field_of_a_table_may_be_of_any_length(kind: str, tmp_path: Path) -> None:
    long = "the fox " * 50_000  # 400,000 characters: csv's own limit is 131,072
    file = tmp_path / f"a.{kind}"
    file.write_text(f"text\n{long}\n")
    assert open_table(file).column("text") == [long]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("a.csv", 'text,label\n"the\nfox",a\n\nfox, big,b\n', r"a.csv:5: .* names 2 columns\. Got 3\. Quote what is"),
        ("a.tsv", "text\tlabel\nthe fox\ta\t\n", r"a.tsv:2: .* names 2 columns\. Got 3\. Take tabs out of what"),
        ("a.csv", 'text,label\nfox,a\n"dog,b\nhen,c\n', r"a.csv:3: the row must be CSV\. Got: unexpected end of data"),
        ("a.csv", 'text,label\n"the "big" fox",a\n', r"a.csv:2: the row must be CSV\. Got: ',' expected after"),
    ],
)  # fmt: skip
def test_rows_that_would_lose_or_swallow_fields_are_refused(file: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(TrainingError, match=says):
        open_table(tmp_path / file)


def test_a_row_that_ends_early_lacks_the_other_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfox\n\ndog,b\n")
    table = open_table(tmp_path / "a.csv")
    assert [dict(table[place].values) for place in range(2)] == [
        {"text": "fox", "label": None},
        {"text": "dog", "label": "b"},
    ]
