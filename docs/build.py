"""Write docs/methods.md and docs/architectures.md from the code: run it after adding a method or a class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records
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


def pages() -> dict[str, str]:
    """Return every page by file name."""
    return {"methods.md": methods(), "architectures.md": architectures()}


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
