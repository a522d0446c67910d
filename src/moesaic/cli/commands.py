"""What each command does: parse, call, print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.cli import show
from moesaic.cli.options import ArchitecturesOptions, CertifyOptions, DemoOptions, PlanOptions, UpcycleOptions, parse
from moesaic.cli.options_calibrate import CalibrateOptions
from moesaic.cli.parsing import parsed
from moesaic.cli.usage import UsageError
from moesaic.convert import Options
from moesaic.method import Method, registry


def plan(args: list[str]) -> None:
    """Show what would be made."""
    options, experts, router = parse("plan", PlanOptions, args)
    _plan(options.source, options.conversion(experts, router), options.tokens, options.dense_tokens, options.json)


def _plan(source: str, options: Options, tokens: float | None, dense_tokens: float | None, as_json: bool) -> None:
    from moesaic.convert import Spliced  # noqa: PLC0415
    from moesaic.estimate import advice, disk_rate, estimate, estimate_spliced  # noqa: PLC0415
    from moesaic.planning import planned  # noqa: PLC0415

    conversion = planned(source, options, say=show.say)
    if isinstance(conversion, Spliced):
        made = estimate_spliced(conversion)
        if as_json:
            _print_json(made.to_json())
            return
        for title, rows in made.tables():
            show.table(title, rows)
        return
    figures = estimate(conversion, disk_rate())
    hints = advice(conversion, tokens, dense_tokens)
    if as_json:
        _print_json({**figures.to_json(), "advice": [{"text": hint.text, "source": hint.source} for hint in hints]})
        return
    for title, rows in figures.tables():
        show.table(title, rows)
    show.table("Advice from published results", [(hint.text, hint.source) for hint in hints], ("what", "source"))


def upcycle(args: list[str]) -> None:
    """Convert, then certify."""
    options, experts, router = parse("upcycle", UpcycleOptions, args)
    chosen, writing = options.conversion(experts, router), options.writing()
    if options.dry_run:
        _plan(options.source, chosen, None, None, options.json)
        return
    from moesaic.api import upcycled  # noqa: PLC0415  # a plan must not wait for it

    with show.bars() as bars:
        made = upcycled(
            options.source,
            options.out,
            chosen,
            writing,
            options.knowledge(),
            certify=not options.no_certify,
            say=show.say,
            progress=bars,
        )
    if options.json:
        certificate = made.certificate.to_json() if made.certificate else None
        _print_json({"folder": str(made.folder), "target": made.target, "certificate": certificate})
        return
    if made.certificate:
        show.table("Certificate: dense against MoE", made.certificate.rows())
    show.OUT.print(f"Wrote {made.folder}: a {made.target} model that loads with transformers' from_pretrained.")


def certify(args: list[str]) -> None:
    """Make the certificate alone."""
    options = parsed(CertifyOptions, "certify", args)
    from moesaic.certification import certify as run  # noqa: PLC0415  # help must not wait for it
    from moesaic.checkpoints.sources import resolve  # noqa: PLC0415

    dense = resolve(options.dense, progress=show.say)
    with show.bars() as bars:
        found = run(
            dense,
            options.moe,
            data=options.data,
            max_tokens=options.max_tokens,
            streaming=options.layer_by_layer or None,
            progress=lambda done, total: bars("certify", done, total),
        )
    if options.json:
        _print_json(found.to_json())
    else:
        show.table("Certificate: dense against MoE", found.rows())


def calibrate(args: list[str]) -> None:
    """Run the dense model over data, for methods that ask for it."""
    options, experts, router = parse("calibrate", CalibrateOptions, args)
    spec = options.spec()
    from moesaic.calibrating import Reading, shown  # noqa: PLC0415  # help must not wait for it
    from moesaic.calibrating import calibrate as run  # noqa: PLC0415

    with show.bars() as bars:
        found = run(
            options.source,
            options.data,
            experts,
            router,
            spec=spec,
            tower=options.tower,
            out=options.out,
            reading=Reading(options.max_tokens, options.batch_tokens, options.window, options.dtype),
            seed=options.seed,
            resume=options.resume,
            overwrite=options.overwrite,
            say=show.say,
            progress=bars,
        )
    if not shown():
        return
    if options.json:
        _print_json(found.record.to_json())
        return
    show.table("FFNs and what they saw", found.rows(), ("tower", "FFNs", "tokens", "statistics"))
    show.OUT.print(f"Wrote {options.out}: pass it to `moesaic upcycle` as --stats.")


def train(args: list[str]) -> None:
    """Train by a recipe."""
    from moesaic.cli.options_train import parse_train  # noqa: PLC0415  # nor other commands for losses and recipes

    command = parse_train(args)
    from moesaic.calibrating import shown  # noqa: PLC0415  # help must not wait for it
    from moesaic.running import train as run  # noqa: PLC0415

    speaks = shown()  # of several processes one
    with show.bars() as bars:
        found = run(
            command.recipe,
            resume=command.resume,
            overwrite=command.overwrite,
            adjust=command.adjust,
            say=show.say if speaks else _silent,
            progress=bars if speaks else _silent,
        )
    if not speaks:
        return
    if command.json:
        _print_json(found.to_json())
        return
    show.table("Training", found.rows())
    if found.certificate:
        show.table("Certificate: dense against MoE, after training", found.certificate["summary"].items())
    show.OUT.print(f"Wrote {found.folder}: it loads like {command.recipe.model}.", soft_wrap=True)


def evaluate(args: list[str]) -> None:
    """Measure a model, or two of them."""
    from moesaic.cli.options_evaluate import parse_evaluate  # noqa: PLC0415  # nor other commands for all tasks

    command = parse_evaluate(args)
    from moesaic.checkpoints.sources import resolve  # noqa: PLC0415  # help must not wait for it
    from moesaic.evaluation import evaluate as run  # noqa: PLC0415
    from moesaic.evaluation.base import settings_of  # noqa: PLC0415
    from moesaic.evaluation.comparing import check_task, difference_rows, earlier, is_evaluation  # noqa: PLC0415

    options, other = command.options, None
    how: dict[str, Any] = {
        "batch_size": options.batch_size,
        "precision": options.precision,
        "seed": options.seed,
        "resume": options.resume,
        "overwrite": options.overwrite,
        "say": show.say,
    }
    if options.against and is_evaluation(options.against):  # what is wrong is told before the first is measured
        check_task(options.against, settings_of(command.task))
    elif options.against:
        resolve(options.against, progress=show.say)
    with show.bars() as bars:
        made = run(options.model, command.task, options.data, out=options.out, progress=bars, **how)
        if options.against and is_evaluation(options.against):
            other = earlier(options.against, made)
        elif options.against:
            beside = options.out / "against" if options.out else None
            second = bars.named("evaluate", "measuring the other")
            other = run(options.against, command.task, options.data, out=beside, progress=second, **how)
    found = made.compare(other, seed=options.seed) if other else {}
    if options.json:
        beside_it = {"against": other.to_json(), "differences": _all_json(found)} if other else {}
        _print_json({**made.to_json(), **beside_it})
        return
    for one in filter(None, (made, other)):
        show.table(f"{one.task['name']}: {one.model}", one.rows(), ("group", "metric", "value", "95 % interval"))
    if other:
        header = ("metric", "difference", "95 % interval", "p", "items")
        show.table(f"{other.model} less {made.model}, item by item", difference_rows(made, found), header)
    told, others = made.signatures(), other.signatures() if other else []
    for line in (*told, *([f"{other.model}:", *others] if other and others != told else ())):
        show.OUT.print(line, soft_wrap=True, markup=False)
    if made.folder:
        show.OUT.print(f"Wrote {made.folder}.", soft_wrap=True)


def demo(args: list[str]) -> None:
    """Run the whole path on SmolLM2-135M."""
    options = parsed(DemoOptions, "demo", args)
    from moesaic.demo import run  # noqa: PLC0415  # help must not wait for it

    with show.bars() as bars:
        result = run(options.out, overwrite=options.overwrite, say=show.say, progress=bars)
    show.table("Certificate: dense against MoE, step 0", result.certificate.rows())
    show.table("The same prompts", result.answers, ("prompt", "dense", "MoE"))
    show.table("Training the MoE: two stages, DPSL", result.moe.rows())
    if result.moe.certificate:
        show.table("Certificate: dense against MoE, after training", result.moe.certificate["summary"].items())
    title = f"Both trained on the same {result.moe.tokens:,} tokens"
    show.table(title, result.losses(), ("model", "held-out loss before, nats per token", "after"))
    show.OUT.print(f"Wrote {result.folder} and {result.moe.folder}: they load with transformers' from_pretrained.")
    show.OUT.print(f"What the experts do: open {result.page} in any browser.", soft_wrap=True, markup=False)


def study(args: list[str]) -> None:
    """Compare methods under one budget."""
    from moesaic.cli.options_study import chosen, parse_study, repeatable, source  # noqa: PLC0415  # nor other commands for all methods

    options = parse_study(args)
    made = chosen(options)
    from moesaic.studies import study as run  # noqa: PLC0415

    with show.bars() as bars:
        result = run(
            made,
            options.out,
            workers=options.workers,
            only=options.arms,
            resume=options.resume,
            command=shlex.join(["moesaic", "study", *repeatable(args)]),
            source=source(options),
            say=show.say,
            progress=bars,
        )
    if options.json:
        _print_json(result.to_json())
        return
    header, rows = result.table()
    show.table(f"{made.name}: mean over {len(made.seeds)} seeds, 95 % interval by test items", rows, header)
    show.OUT.print(f"Wrote {options.out}/result.md, result.json and plots.", soft_wrap=True)


def report(args: list[str]) -> None:
    """Show what the experts of a model learned."""
    from moesaic.cli.options_report import report as run  # noqa: PLC0415

    run(args)


def push(args: list[str]) -> None:
    """Upload a finished model."""
    from moesaic.cli.options_push import push as run  # noqa: PLC0415

    run(args)


def nli(args: list[str]) -> None:
    """Interpolate nonlinear functions by tables."""
    from moesaic.cli.nli import run  # noqa: PLC0415

    run(args)


def methods(args: list[str]) -> None:
    """List expert and router inits, router losses and balancers."""
    parsed(_NoOptions, "methods", args)
    from moesaic.experts.base import ExpertInit  # noqa: PLC0415
    from moesaic.routers.base import RouterInit  # noqa: PLC0415

    kinds: list[tuple[str, dict[str, type[Method]]]] = [
        ("Expert inits (--experts)", {**registry("moesaic.experts", ExpertInit)}),
        ("Router inits (--router)", {**registry("moesaic.routers", RouterInit)}),
        ("Router losses and balancers (train --losses; eesd by --eesd)", registry("moesaic.losses", Method)),
        ("Evaluation tasks (evaluate --task)", registry("moesaic.evaluation.tasks", Method)),
    ]
    for title, found in kinds:
        rows = [(name, cls.summary(), cls.reference(), _fields(cls)) for name, cls in found.items()]
        show.table(title, rows, ("name", "makes" if "inits" in title else "does", "reference", "fields"))


def architectures(args: list[str]) -> None:
    """List dense families, their sparse targets, and composites; or the FFNs of one model."""
    options = parsed(ArchitecturesOptions, "architectures", args)
    if options.of:
        _ffns(options.of, options.json)
        return
    from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records  # noqa: PLC0415

    families = records(DenseFamily).values()
    show.table("Dense families", [(f.model_type, ", ".join(f.targets)) for f in families], ("dense", "sparse targets"))
    targets = [(t.model_type, t.class_name, t.since, _kinds(t)) for t in records(SparseTarget).values()]
    show.table("Sparse targets", targets, ("target", "class", "transformers", "expresses"))
    wrappers = [(w.model_type, w.class_name) for w in records(Wrapper).values()]
    show.table("Composites whose text part is upcycled", wrappers, ("model", "class"))


def _ffns(source: str, as_json: bool) -> None:
    """Show where the FFNs of a model are, what they compute, and what was looked at and refused."""
    from moesaic.planning import ffns  # noqa: PLC0415

    found = ffns(source, say=show.say)
    if as_json:
        _print_json({"stock": found.stock, "sites": [site.to_json() for site in found.sites], "refused": found.refused})
        return
    header = ("under", "FFNs", "layout", "activation", "hidden -> width", "biases")
    show.table(f"FFNs of {found.class_name}", found.rows(), header)
    if found.refused:
        show.table("Looked at and refused", list(found.refused.items()), ("module", "why"))
    show.OUT.print(found.verdict)


def sources(args: list[str]) -> None:
    """List the small real models and the corpora, or write a corpus."""
    from moesaic import corpora  # noqa: PLC0415  # help must not wait for them
    from moesaic.checkpoints.sources import listing  # noqa: PLC0415
    from moesaic.cli.options_sources import SourcesOptions, parse_corpus  # noqa: PLC0415

    models = listing()
    if args and args[0] in {row.name for row in models}:
        raise UsageError(f"{args[0]}: it must be a corpus to be written. Got a model. Commands take it by this name.")
    if args and not args[0].startswith("-"):
        corpus, out, fold = parse_corpus(corpora.find(args[0]), args[1:])
        show.OUT.print(f"Wrote {corpora.write(corpus, out, fold, say=show.say)}.", soft_wrap=True)
        return
    parsed(SourcesOptions, "sources", args)
    header = ("name", "what", "licence", "download", "")
    rows = [(r.name, r.what, r.licence, f"{r.megabytes} MB", "cached" if r.cached else "") for r in models]
    show.table("Small real models inside packages", rows, header)
    data = [
        (name, c.what, c.licence, f"{c.megabytes()} MB" if c.packages else "yours", "cached" if c.is_cached() else "")
        for name, c in corpora.known().items()
    ]
    show.table("Data: moesaic sources NAME OUT writes them", data, header)


@dataclass(frozen=True)
class _NoOptions:
    """List what there is; takes no options."""


def _silent(*_: Any) -> None:
    """Say nothing."""


def _kinds(target: Any) -> str:
    words = {"some_layers": "any layers", "leading_dense": "leading dense layers"}
    found = [text for feature, text in words.items() if feature in target.supports][:1] or ["all layers"]
    if target.shared:
        found.append("shared expert" + (" (always)" if target.shared_required else ""))
    return ", ".join(found)


def _fields(cls: type[Method]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in cls().settings().items())


def _all_json(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in found.items()}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201
