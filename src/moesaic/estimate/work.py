"""The conversion itself in numbers: what is written, how much memory it holds, how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from moesaic.architectures.sparse import ExpertTensor
from moesaic.convert import DEFAULT_SHARD, Conversion
from moesaic.convert.blocks import SCALED
from moesaic.convert.produce import CHUNK
from moesaic.estimate.model import sizes
from moesaic.plan import ITEM_BYTES, Copy, Fill, Fold, Routed, Router, Shared
from moesaic.shapes import Matrix

PYTHON, TORCH = 24 << 20, 160 << 20
"""Bytes of a process that has imported moesaic and numpy, and of one that has imported torch too (2.13, CPU build)."""
PER_OUTPUT = 3 << 10
"""Bytes that plan, layout and journal hold for one output tensor."""
KEPT = 128 << 20
"""Bytes of freed blocks that malloc and BLAS keep for one thread at most; they are up to twice what it has in use."""
ROUTER_ITEM = 28
"""Bytes that drawing and rounding a router holds for one weight, in numpy."""

# Seconds on one core of an AMD EPYC of 2022; they hold within a factor of two elsewhere.
CHECKED = 0.9e9  # bytes hashed and searched for NaN in a second
MADE = 15e-9  # seconds to draw, add and round one weight
OPERATIONS = 30e9  # float64 operations of linear algebra in a second
START, START_TORCH = 0.3, 3.0  # seconds until a process has imported what it needs


@dataclass(frozen=True)
class Tensors:
    """What is read and written.

    Args:
        read, written: bytes; each source tensor is read once. copied: of those written, bytes that stand in the source
            too and go through the kernel; nothing is stored for them where the file system shares extents, but for
            ragged ends. outputs: number of tensors; copies, computed, routers, constants: how many of each kind.
    """

    read: int
    written: int
    copied: int
    outputs: int
    copies: int
    computed: int
    routers: int
    constants: int


@dataclass(frozen=True)
class Memory:
    """Anonymous memory of the conversion, an upper estimate in bytes; mapped source pages are not in it.

    The measured peak of RssAnon was 0.7 to 0.98 of it in twelve conversions (tests/unit/test_estimate.py lists them).

    Args:
        peak: of the process. worker: what each further worker adds. workers: threads that have such work.
    """

    peak: int
    worker: int
    workers: int


@dataclass(frozen=True)
class Seconds:
    """Time of the conversion, in seconds.

    Args:
        check: hashing the source and searching it for NaN. make: computing new weights. write: until the bytes are on
            the disk, None where its rate is unknown; making and writing overlap. total: None likewise.
    """

    check: float
    make: float
    write: float | None
    total: float | None


def tensors(conversion: Conversion) -> Tensors:
    """Count what is read and written."""
    plan = conversion.plan
    kinds = Counter(type(output.pieces[0].origin) for output in plan.outputs)
    copied = sum(p.nbytes for o in plan.outputs for p in o.pieces if isinstance(p.origin, Copy))
    return Tensors(
        read=plan.bytes_read,
        written=plan.bytes_written,
        copied=copied,
        outputs=len(plan.outputs),
        copies=kinds[Copy],
        computed=kinds[Fold] + kinds[Routed] + kinds[Shared],
        routers=kinds[Router],
        constants=kinds[Fill],
    )


@dataclass(frozen=True)
class _Computed:
    """What passes through torch: layers whose experts are made, folds, and how many weights both write."""

    layers: frozenset[int]
    folds: tuple[Fold, ...]
    weights: int

    @classmethod
    def of(cls, conversion: Conversion) -> _Computed:
        layers: set[int] = set()
        folds: list[Fold] = []
        weights = 0
        for output in conversion.plan.outputs:
            for piece in output.pieces:
                if isinstance(piece.origin, Routed | Shared):
                    layers.add(piece.origin.layer)
                elif isinstance(piece.origin, Fold):
                    folds.append(piece.origin)
                else:
                    continue
                weights += piece.nbytes // ITEM_BYTES[output.info.dtype]
        return cls(frozenset(layers), tuple(folds), weights)


def memory(conversion: Conversion, workers: int) -> Memory:
    """Return the memory that `workers` threads take; each holds one layer's new tensors, or a run of a changed one."""
    computed, layer = _Computed.of(conversion), conversion.shape.layer
    jobs = {
        _layer_bytes(conversion): min(workers, len(computed.layers)),
        max((_fold_bytes(conversion, fold) for fold in computed.folds), default=0): min(workers, len(computed.folds)),
        ROUTER_ITEM * layer.num_experts * layer.hidden: workers,
    }
    held, threads = max(((nbytes + min(2 * nbytes, KEPT), n) for nbytes, n in jobs.items() if n), key=_product)
    base = (TORCH if computed.weights else PYTHON) + PER_OUTPUT * len(conversion.plan.outputs)
    return Memory(base + held * threads, held, threads)


def _product(pair: tuple[int, int]) -> int:
    return pair[0] * pair[1]


def _layer_bytes(conversion: Conversion) -> int:
    """Return what making one layer holds: what the method says, and the tensor being rounded and written."""
    outputs, layer, target = conversion.outputs, conversion.shape.layer, conversion.match.target
    shared_factor, routed_factor = outputs.factors
    tensors = {rows.tensor for ffn in outputs.ffns.values() for rows in ffn.values()}
    widest = max(ITEM_BYTES[outputs.holdings.infos[name].dtype] for name in tensors)
    made = conversion.options.experts.working_bytes(layer, widest)
    item = ITEM_BYTES[outputs.dtype] if outputs.dtype else widest
    routed = max(_rounded(t, sizes(layer, layer.expert_size), item, routed_factor) for t in target.experts)
    shared = max((_rounded(t, sizes(layer, layer.shared_width), item, shared_factor) for t in target.shared), default=0)
    return max(made + routed, shared if layer.shared_expert else 0)


def _rounded(tensor: ExpertTensor, of: Mapping[Matrix, int], item: int, factor: float) -> int:
    """Return what scaling, stacking and transposing one tensor of an expert holds."""
    turns = 1 + (len(tensor.matrices) > 1) + tensor.transposed
    scaled = sum(of[m] for m in tensor.matrices if m in SCALED) if factor != 1 else 0
    return turns * item * sum(of[m] for m in tensor.matrices) + 8 * scaled


def _fold_bytes(conversion: Conversion, fold: Fold) -> int:
    """Return what changing a tensor run by run holds; rotary rows are changed at once."""
    info = conversion.plan.sources[fold.rows.tensor]
    item = ITEM_BYTES[info.dtype]
    count = info.count if fold.rotary else min(info.count, CHUNK // item)
    arithmetic = 12 if (fold.scale, fold.offset) != (1.0, 0.0) else 0
    return count * (2 * item + arithmetic)


def seconds(conversion: Conversion, workers: int, disk_rate: float | None) -> Seconds:
    """Return how long the conversion takes with `workers` threads, the source being read as fast as it is hashed."""
    plan, computed = conversion.plan, _Computed.of(conversion)
    files = -(-plan.bytes_read // DEFAULT_SHARD)
    check = plan.bytes_read / CHECKED / min(workers, files)
    operations = len(computed.layers) * conversion.options.experts.operations(conversion.shape.layer)
    threads = min(workers, len(computed.layers) + len(computed.folds)) or 1
    make = (computed.weights * MADE + operations / OPERATIONS) / threads
    write = plan.bytes_written / disk_rate if disk_rate else None
    start = START_TORCH if computed.weights else START
    return Seconds(check, make, write, None if write is None else start + check + max(make, write))
