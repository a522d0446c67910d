"""A study's result as JSON, Markdown and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from moesaic.studies.arm import Arm
from moesaic.studies.comparing import Against
from moesaic.studies.plots import draw
from moesaic.studies.result import Result, Row, Tried

JSON, MARKDOWN = "result.json", "result.md"


def write(result: Result, out: Path) -> None:
    """Write result.json, result.md and plots/*.png into the study's folder, the two of one result."""
    numbers = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    texts = {JSON: numbers + "\n", MARKDOWN: markdown(result, draw(result, out / "plots"))}
    for name, text in texts.items():
        (out / f"{name}.partial").write_text(text, encoding="utf-8")
    for name in texts:
        (out / f"{name}.partial").replace(out / name)


def markdown(result: Result, pictures: list[str]) -> str:
    """Return the report: scores, comparisons, what stands beside them, and how to make it again."""
    study = result.study
    budget = (
        f"{_folds(result)}; {study.budget.steps:,} steps of "
        f"{study.budget.batch_size * study.budget.accumulate} examples for all; learning rate from "
        f"{', '.join(f'{rate:g}' for rate in study.rates)} by held-out loss on {_seeds(study.tuned_on)}; MoE layers: "
        f"{study.layers}."
    )
    scores = "## Scores\n\nMean over seeds, 95 % interval by resampled test items.\n\n" + _table(*_scores(result))
    parts = [f"# {study.name}", study.question, budget, scores]
    for reference in study.references:
        if reference in {row.arm for row in result.rows}:
            how = "Difference on the same items: interval and p by items, then by seeds (t)."
            parts.append(f"## Against {reference}\n\n{how}\n\n" + _table(*_comparison(result, reference)))
    how = "Mean over seeds; routing is the mean over layers."
    parts.append(f"## Size, routing, cost\n\n{how}\n\n" + _table(*_beside(result)))
    groups = _by_group(result)
    if groups:
        parts.append("## By group\n\nMean over seeds.\n\n" + "\n\n".join(groups))
    parts += [f"![{Path(name).stem}](plots/{name})" for name in pictures]
    if result.missing:
        parts.append(f"Not finished: {', '.join(result.missing)}.")
    parts.append("## How\n\n" + _how(result))
    return "\n\n".join(parts) + "\n"


def _scores(result: Result) -> tuple[list[str], list[list[str]]]:
    keys = result.headline()
    head = ["method", "what", "lr", "held-out loss at step 0", *(_name(result, key) for key in keys)]
    return head, [_score_row(result, row, keys) for row in result.rows]


def _score_row(result: Result, row: Row, keys: list[tuple[str, str]]) -> list[str]:
    arm = result.study.arm(row.arm)
    name = f"**{row.arm}**" if arm.kind == "recommended" else row.arm
    first = _number(row.of("held_out", "first", "eval/loss"))
    return [
        name,
        arm.what,
        f"{row.rate:g}",
        first,
        *(row.means[key].text() if key in row.means else "" for key in keys),
    ]


def _comparison(result: Result, reference: str) -> tuple[list[str], list[list[str]]]:
    keys = result.headline()
    rows = []
    for row in result.rows:
        found = [row.against.get((*key, reference)) for key in keys]
        if any(found):
            rows.append([row.arm, *(_against(one) if one else "" for one in found)])
    return ["method", *(_name(result, key) for key in keys)], rows


def _beside(result: Result) -> tuple[list[str], list[list[str]]]:
    head = [
        "method", "kind", "parameters", "active", "trained on tokens", "training TFLOP", "KL to dense, nats",
        "diversity of last linears", "of first", "entropy / ln E", "top-1", "worst load CV", "information, nats",
        "CPU s a cell",
    ]  # fmt: skip
    return head, [_beside_row(row, result.study.arm(row.arm)) for row in result.rows]


def _beside_row(row: Row, arm: Arm) -> list[str]:
    active, tokens = mean(row.of("look", "active")), mean(row.of("tokens"))
    layers = [list(one.values()) for one in row.of("look", "routing") if one]
    flat = [layer for one in layers for layer in one]
    worst = [max(layer["load_cv"] for layer in one) for one in layers]
    last = [one.get("eval/kl", one.get("eval/cosine_distance")) for one in row.of("held_out", "last")]
    return [
        row.arm,
        arm.kind,
        _millions(mean(row.of("look", "parameters"))),
        _millions(active),
        f"{tokens:,.0f}",
        f"{6 * active * tokens / 1e12:,.1f}",
        _number(last),
        _number(row.of("look", "diversity")),
        _number(row.of("look", "diversity_first")),
        *(_number([layer[name] for layer in flat]) for name in ("entropy", "top1")),
        _number(worst),
        _number([layer["information"] for layer in flat]),
        f"{mean(row.of('cpu_seconds')):,.0f}",
    ]


def _by_group(result: Result) -> list[str]:
    """Return a table for each headline metric that has groups."""
    return [made for measure, metric in result.headline() if (made := _group_table(result, measure, metric))]


def _group_table(result: Result, measure: str, metric: str) -> str:
    values = {row.arm: dict(_groups(row, measure, metric)) for row in result.rows}
    names = sorted({name for one in values.values() for name in one})
    if not names:
        return ""
    rows = [[arm, *(f"{one[name]:.3f}" if name in one else "" for name in names)] for arm, one in values.items()]
    return f"{metric}:\n\n" + _table(["method", *names], rows)


def _groups(row: Row, measure: str, metric: str) -> Iterator[tuple[str, float]]:
    found: dict[str, list[float]] = {}
    for scores in row.of("measures", measure, "scores"):
        for score in scores or ():
            if score["name"] == metric and score["group"]:
                found.setdefault(score["group"], []).append(score["value"])
    for name, values in found.items():
        yield name, mean(values)


def _name(result: Result, key: tuple[str, str]) -> str:
    several = len({one.title for one in result.study.bench.measures()}) > 1
    arrow = {"lower": " ↓", "higher": " ↑"}[result.better.get(key, "higher")]
    return (f"{key[0]}: {key[1]}" if several else key[1]) + arrow


def _how(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items()) or "versions unknown"
    seeds = ", ".join(map(str, result.study.seeds))
    lines = [f"    {result.command}" if result.command else "", f"{versions}; seeds {seeds}."]
    lines += [f"{name}: `{signature}`." for name, signature in result.signatures.items()]
    lines += _by_rate(result)
    return "\n\n".join(line for line in lines if line)


def _by_rate(result: Result) -> Iterator[str]:
    """Yield a table of what every learning rate came to: the loss that it is chosen by, then each headline metric."""
    seeds, head = _seeds(result.study.tuned_on), ["method", *(f"{rate:g}" for rate in result.study.rates)]

    def table(value: Callable[[Tried], float | None]) -> str:
        rows = [[arm, *(_tried(one, value(one)) for one in found.values())] for arm, found in result.tuning.items()]
        return _table(head, rows)

    yield f"Held-out loss by learning rate, by which it is chosen; {seeds}:"
    yield table(lambda one: one.held_out)
    for key in result.headline() if len(result.study.rates) > 1 else ():
        yield f"{_name(result, key)} by learning rate; {seeds}:"
        yield table(lambda one, key=key: one.scores.get(key))  # type: ignore[misc]


def _tried(one: Tried, value: float | None) -> str:
    if one.held_out is None:
        return "diverged"
    return f"{value:.4f}" if value is not None else ""


def _folds(result: Result) -> str:
    """Say how many seeds there are, and on how many folds, which are told by their test items."""
    tested = [[one["items"] for one in measures.values()] for measures in result.rows[0].of("measures")]
    folds = len({tuple(items) for items in tested})
    return f"{_count(len(tested), 'seed')} on {_count(folds, 'fold')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def _against(one: Against) -> str:
    text = f"{one.value:+.3f}"
    if one.low is not None and one.high is not None and one.p is not None:
        text += f" [{one.low:+.3f}, {one.high:+.3f}] p {_p(one.p)}"
    if one.seed_low is None or one.seed_high is None or one.seed_p is None:
        return text
    return f"{text}; [{one.seed_low:+.3f}, {one.seed_high:+.3f}] p {_p(one.seed_p)}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _number(values: list[Any]) -> str:
    known = [float(value) for value in values if value is not None]
    return f"{mean(known):.3f}" if known else ""


def _millions(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
