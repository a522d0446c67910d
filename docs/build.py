"""Write docs/methods.md, architectures.md and corpora.md from the code: run it after adding a method or a class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from moesaic import corpora
from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records
from moesaic.corpora.pinned import FOLDS
from moesaic.experts.base import ExpertInit
from moesaic.method import Method, registry
from moesaic.routers.base import RouterInit
from moesaic.stats import Statistic

HERE = Path(__file__).parent


def methods() -> str:
    """Return the table of every method."""
    lines = ["# Methods", "", "Made from the code by `docs/build.py`."]
    kinds: list[tuple[str, dict[str, type[Method]]]] = [
        ("Expert inits", {**registry("moesaic.experts", ExpertInit)}),
        ("Router inits", {**registry("moesaic.routers", RouterInit)}),
        ("Router losses, balancers, distillation", registry("moesaic.losses", Method)),
        ("Statistics, which methods declare", {**registry("moesaic.stats", Statistic)}),
    ]
    for title, found in kinds:
        does = "does" if "losses" in title else "makes"
        lines += ["", f"## {title}", "", f"| name | {does} | reference | fields |", "|---|---|---|---|"]
        for name, cls in found.items():
            fields = ", ".join(f"`{key} = {value}`" for key, value in cls().settings().items())
            lines.append(f"| `{name}` | {cls.summary()} | {cls.reference()} | {fields} |")
    return "\n".join(lines) + "\n"


def architectures() -> str:
    """Return the tables of families, targets and composites."""
    return "\n".join(_architectures()) + "\n"


def _architectures() -> Iterator[str]:
    yield from ("# Architectures", "", "Made from the code by `docs/build.py`.", "")
    yield from ("| dense | sparse targets, the preferred first |", "|---|---|")
    for family in records(DenseFamily).values():
        yield f"| `{family.model_type}` | {', '.join(f'`{name}`' for name in family.targets)} |"
    yield from (
        "",
        "| target | class | transformers | what it expresses beyond the plain decoder |",
        "|---|---|---|---|",
    )
    for target in records(SparseTarget).values():
        known = ", ".join(sorted(target.supports | {f"{name} (folded)" for name in target.folds}))
        yield f"| `{target.model_type}` | `{target.class_name}` | {target.since} | {known} |"
    yield from ("", "Composites whose text part is upcycled:", "")
    yield ", ".join(f"`{name}`" for name in records(Wrapper)) + "."


def data() -> str:
    """Return the page of every corpus: what it is, whose, and what it is split into."""
    return "\n".join(_data()) + "\n"


def _data() -> Iterator[str]:
    yield from ("# Data", "", "Made from the code by `docs/build.py`.", "")
    yield "`moesaic sources NAME OUT [--fold F] [options]` fetches and writes a corpus; its rows in Python are those of"
    yield "`moesaic.corpora.find(NAME)(...).rows(part, fold)`. Packages are pinned by version and sha256 and treated as"
    yield "data: nothing is installed, no code of theirs is run. Parts are made by the hash of the source, so nothing"
    yield "of one source is in two. `MOESAIC_FIND_PACKAGES` may name a folder of .deb and .tgz files to be taken from"
    yield "instead of the registries."
    for name, corpus in corpora.known().items():
        text = inspect.getdoc(corpus) or ""
        yield from ("", f"## {name}", "", text.partition("\n\nArgs:")[0], "")
        yield f"Licence: {corpus.licence}."
        if not corpus.packages:
            continue
        yield from ("", "| package | download | licence | sha256 |", "|---|---|---|---|")
        for package in corpus.packages:
            yield f"| `{package.pin}` | {package.megabytes} MB | {package.licence} | `{package.sha256}` |"
        yield from (
            "",
            "| fold | train | validation | test | sha256 of the three files' sha256, joined |",
            "|---|---|---|---|---|",
        )
        for number, fold in enumerate(FOLDS[name]):
            yield f"| {number} | {' | '.join(f'{rows:,}' for rows in fold.rows)} | `{fold.sha256}` |"


def pages() -> dict[str, str]:
    """Return every page by file name."""
    return {"methods.md": methods(), "architectures.md": architectures(), "corpora.md": data()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
