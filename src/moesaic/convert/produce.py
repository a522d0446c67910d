"""Making every piece of the output, one tensor at a time, by a bounded pool of threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from moesaic.checkpoints.dense import DenseCheckpoint, torch_dtype
from moesaic.checkpoints.encode import encode_array, encode_tensor
from moesaic.checkpoints.journal import Key
from moesaic.checkpoints.layout import Shard
from moesaic.checkpoints.sink import Sink
from moesaic.convert.blocks import SCALED
from moesaic.convert.convertible import Convertible
from moesaic.errors import PlanError
from moesaic.ffn import FFN
from moesaic.lazy import np, torch
from moesaic.plan import FLOATS, ITEM_BYTES, Copy, Fill, Fold, Piece, Routed, Router, Rows, Shared
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen

CHUNK = 4 << 20  # bytes of a tensor that is changed element by element, held at once
LARGEST = {"F64": sys.float_info.max, "F32": 2.0**128 - 2.0**104, "BF16": 2.0**128 - 2.0**120, "F16": 65504.0}
"""The largest number of each dtype; what is larger would be stored as infinity."""


@dataclass(frozen=True)
class Place:
    """A piece, its key in the journal, and where it goes."""

    key: Key
    piece: Piece
    dtype: str
    shard: Shard
    offset: int


def places(conversion: Convertible, shards: Sequence[Shard]) -> Iterator[Place]:
    """Yield every piece of the plan with its place on disk, in plan order."""
    where = {index: (shard, offset) for shard in shards for index, offset in shard.offsets.items()}
    for index, output in enumerate(conversion.plan.outputs):
        shard, offset = where[index]
        for number, piece in enumerate(output.pieces):
            yield Place((index, number), piece, output.info.dtype, shard, offset)
            offset += piece.nbytes


@dataclass(frozen=True)
class Producer:
    """Makes the pieces of one conversion and hands them to a sink.

    Every layer is made by one thread with single-threaded linear algebra, so results do not depend on the number of
    threads; memory is `workers` times one layer.
    """

    conversion: Convertible
    source: DenseCheckpoint
    sink: Sink
    progress: Callable[[int], None]
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def run(self, shards: Sequence[Shard], workers: int) -> None:
        """Write every piece that the sink does not have yet; the first failure stops all."""
        simple: list[Place] = []
        layers: dict[int, list[Place]] = {}
        for place in places(self.conversion, shards):
            if place.key in self.sink.done:
                self.progress(place.piece.nbytes)
            elif isinstance(place.piece.origin, Routed | Shared):
                layers.setdefault(place.piece.origin.layer, []).append(place)
            else:
                simple.append(place)
        setup = _single_threaded if layers else _nothing
        with ThreadPoolExecutor(workers, initializer=setup) as pool:
            jobs: list[Future[None]] = [pool.submit(self._layer, layer, items) for layer, items in layers.items()]
            jobs += [pool.submit(self._simple, place) for place in simple]
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _simple(self, place: Place) -> None:
        origin = place.piece.origin
        if isinstance(origin, Copy):
            file, start, nbytes = self.source.span(origin.rows)
            self.sink.copy(place.key, place.shard, place.offset, file, start, nbytes)
        elif isinstance(origin, Fill):
            values = np.full(place.piece.nbytes // ITEM_BYTES[place.dtype], origin.value)
            self.sink.put(place.key, place.shard, place.offset, encode_array(values, place.dtype))
        elif isinstance(origin, Router):
            weight = router_weight(self.conversion, self.source, origin.layer)
            self._check_fits(place, float(np.abs(weight).max(initial=0.0)))
            self.sink.put(place.key, place.shard, place.offset, encode_array(weight, place.dtype))
        else:
            assert isinstance(origin, Fold)
            self.sink.put_all(place.key, place.shard, place.offset, self._fold(place, origin))
        self.progress(place.piece.nbytes)

    def _fold(self, place: Place, fold: Fold) -> Iterator[memoryview]:
        """Yield the bytes of a folded tensor, a run of rows at a time (rotary ones at once: they mix rows)."""
        rows = fold.rows
        info = self.source.infos[rows.tensor]
        step = max(CHUNK // max(info.nbytes // max(rows.stop, 1), 1), 1) if not fold.rotary else rows.stop - rows.start
        for start in range(rows.start, rows.stop, step):
            part = self.source.read(Rows(rows.tensor, start, min(start + step, rows.stop)))
            if fold.rotary:
                part = half_split(part, *fold.rotary)
            if (fold.scale, fold.offset) != (1.0, 0.0):
                wide = part.to(torch.promote_types(part.dtype, torch.float32))
                part = wide * fold.scale + fold.offset
            yield encode_tensor(self._cast(place, part), torch_dtype(place.dtype))

    def _layer(self, layer: int, items: list[Place]) -> None:
        """Write the computed tensors of one MoE layer, expert by expert."""
        by_expert: dict[int, list[tuple[Place, Routed]]] = {}
        shared: list[tuple[Place, Shared]] = []
        for place in items:
            origin = place.piece.origin
            if isinstance(origin, Routed):
                by_expert.setdefault(origin.expert, []).append((place, origin))
            elif isinstance(origin, Shared):
                shared.append((place, origin))
        method = self.conversion.options.experts
        given = given_of(self.conversion, self.source, layer)
        if shared:
            block = method.shared(*given)
            for place, whole in shared:
                self._block(place, block, whole, self.conversion.factors[0])
        if not by_expert:
            return
        made = method.experts(*given)
        for i in range(max(by_expert) + 1):
            if self._stop.is_set():  # an interrupted user must not wait for the rest of a layer
                return
            # No name keeps an expert while the next one is made.
            self._expert(next(made), by_expert.get(i, []), given[1].expert_size)

    def _expert(self, expert: FFN, parts: list[tuple[Place, Routed]], size: int) -> None:
        name = self.conversion.options.experts.name()
        assert expert.width == size, f"{name} made an expert of {expert.width} neurons, not {size}"
        for place, part in parts:
            self._block(place, expert, part, self.conversion.factors[1])

    def _block(self, place: Place, ffn: FFN, origin: Routed | Shared, factor: float) -> None:
        parts: list[torch.Tensor] = []
        for name in origin.matrices:
            tensor = getattr(ffn, name)
            if factor != 1.0 and name in SCALED:
                tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor
            parts.append(self._cast(place, tensor))
        block = torch.cat(parts) if len(parts) > 1 else parts[0]
        data = encode_tensor(block.T if origin.transposed else block, block.dtype)
        assert data.nbytes == place.piece.nbytes, f"{origin}: {data.nbytes} bytes for {place.piece.nbytes}"
        self.sink.put(place.key, place.shard, place.offset, data)
        self.progress(data.nbytes)

    def _cast(self, place: Place, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in the dtype of its place, once it is known to fit."""
        if tensor.numel():
            low, high = tensor.aminmax()
            self._check_fits(place, max(-float(low), float(high)))
        return tensor.to(torch_dtype(place.dtype))

    def _check_fits(self, place: Place, largest: float) -> None:
        if largest <= LARGEST[place.dtype]:  # never true of NaN
            return
        name, limit = self.conversion.plan.outputs[place.key[0]].name, LARGEST[place.dtype]
        wider = [FLOATS[dtype] for dtype in ("BF16", "F32") if largest <= LARGEST[dtype]]
        raise PlanError(
            f"tensor {name!r}: its numbers must fit into {FLOATS[place.dtype]}, which ends at {limit:.6g}. "
            f"Got {largest:.6g}. " + (f"Pass --dtype {' or '.join(wider)}." if wider else "Leave --dtype out.")
        )


Given = tuple[FFN, LayerSpec, Stream, Seen]


def given_of(conversion: Convertible, source: DenseCheckpoint, layer: int) -> Given:
    """Return what an expert init is given for a layer."""
    method = conversion.options.experts.name()
    dense = FFN(**{m: source.read(rows) for m, rows in conversion.plan.ffns[layer].items()})
    stream = Stream(conversion.options.seed).child(method, layer)
    return dense, conversion.layers[layer], stream, conversion.seen.get(layer, UNSEEN)


def router_weight(conversion: Convertible, source: DenseCheckpoint, layer: int) -> np.ndarray:
    """Return the router weight of a layer, [E, D] float64; a router that reads data also learns who holds what."""
    router, moe = conversion.router, conversion.layers[layer]
    seen = conversion.seen.get(layer, UNSEEN)
    if router.statistics(moe):
        seen = replace(seen, neurons_Ef=conversion.options.experts.neurons(*given_of(conversion, source, layer)))
    return router.weight(moe, Stream(conversion.options.seed).child(router.name(), layer), seen)


def half_split(rows: torch.Tensor, head_dim: int, rotary: int) -> torch.Tensor:
    """Return q or k rows with each head's rotary pairs (2j, 2j + 1) moved to (j, j + rotary / 2).

    Interleaved rotary embedding on the old rows equals half-split rotary embedding on the new ones. Rows beyond the
    rotary part of a head stay where they are.

    Args:
        rows: weight [heads * head_dim, D] or bias [heads * head_dim].
    """
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])
    pairs = torch.arange(rotary)
    order = torch.cat([pairs[0::2], pairs[1::2], torch.arange(rotary, head_dim)])
    return heads.index_select(1, order).reshape(rows.shape)


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _nothing() -> None:
    return None
