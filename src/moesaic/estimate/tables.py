"""The figures as text: tables of label and value."""

from __future__ import annotations

from collections.abc import Iterator

from moesaic.estimate.model import Becomes, Flops, Parameters, Training
from moesaic.estimate.work import Memory, Seconds, Tensors

Table = tuple[str, list[tuple[str, str]]]


def tables(
    what: Becomes, count: Parameters, flops: Flops, made: Tensors, memory: Memory, time: Seconds, training: Training
) -> Iterator[Table]:
    """Yield (title, rows): what becomes what, its size and cost, the conversion, the training."""
    yield f"{what.dense_class} becomes {what.sparse_class}", [*_becomes(what)]
    yield "Size and cost", [*_size(count, flops)]
    yield "The conversion", [*_work(made, memory, time)]
    yield "Memory of training: AdamW, bf16 with float32 master weights, activations on top", [*_training(training)]


def _becomes(what: Becomes) -> Iterator[tuple[str, str]]:
    shared = f", and a shared expert of {what.width:,}" if what.shared_expert else ""
    size = f"{what.num_experts} of {what.expert_size:,} neurons, top-{what.top_k}{shared}"
    yield "MoE layers", f"{len(what.moe_layers)} of {what.num_layers}"
    yield "experts", f"{size}; granularity {what.granularity:g}"
    yield "inits", f"experts {what.experts}, router {what.router}"
    for dense, sparse in what.matrices.items():
        yield dense, "\n".join(sparse)


def _size(count: Parameters, flops: Flops) -> Iterator[tuple[str, str]]:
    yield "dense parameters", scaled(count.dense)
    yield "MoE parameters", scaled(count.total)
    yield "of these active per token", f"{scaled(count.active)} ({count.active_ratio:.1%}), embedding included"
    yield "of these in experts", f"{scaled(count.routed)}, {scaled(count.expert)} each"
    yield "forward FLOPs per token, dense", f"{scaled(flops.dense)} at a context of {flops.context:,} tokens"
    yield "forward FLOPs per token, MoE", f"{scaled(flops.moe)} ({flops.ratio:.2f} x dense); training takes 3 x these"


def _work(made: Tensors, memory: Memory, time: Seconds) -> Iterator[tuple[str, str]]:
    kinds = {"copied": made.copies, "computed": made.computed, "routers": made.routers, "constants": made.constants}
    yield "reads", f"{scaled(made.read)}B"
    yield "writes", f"{scaled(made.written)}B, {made.copied / made.written:.0%} of them copies of source bytes"
    yield "tensors", f"{made.outputs:,}: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n)
    yield "peak memory", f"{scaled(memory.peak)}B; {scaled(memory.worker)}B for each of {memory.workers} workers"
    yield "checking the source", duration(time.check)
    yield "computing", duration(time.make)
    yield "writing to the disk", "unknown: the disk was not measured" if time.write is None else duration(time.write)
    if time.total is not None:
        yield "in all", f"{duration(time.total)}; computing and writing overlap"


def _training(training: Training) -> Iterator[tuple[str, str]]:
    yield "dense model, all of it", f"{scaled(training.dense)}B"
    yield "MoE, all of it", f"{scaled(training.full)}B"
    if training.stage_one is not None:
        yield "MoE, stage one (copied routed matrices frozen)", f"{scaled(training.stage_one)}B"
    yield "MoE, routed experts alone", f"{scaled(training.experts)}B"
    yield "MoE, routers alone", f"{scaled(training.routers)}B"


def scaled(number: float) -> str:
    """Return a number with three digits and a power of 1000.

    >>> scaled(46_702_792_704), scaled(999_600), scaled(12)
    ('46.7 G', '1.00 M', '12 ')
    """
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 999.5 or unit == "P":
            break
        number /= 1000
    digits = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> duration(0.2), duration(75), duration(9000)
    ('under 1 s', '75 s', '2.5 h')
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
