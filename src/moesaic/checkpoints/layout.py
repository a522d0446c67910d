"""Which output tensor goes into which shard, and where: decided before a byte is written, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.checkpoints.dense import INDEX, DenseCheckpoint
from moesaic.checkpoints.header import encode_header
from moesaic.plan import Copy, Output, TensorInfo

BLOCK = 4096  # bytes; the unit in which file systems share extents
SHARE_FROM = 64 << 20  # bytes; an alignment class smaller than this is not worth a shard of its own


@dataclass(frozen=True)
class Shard:
    """One file to write.

    Args:
        name: file name. header: its first bytes. offsets: index into the plan's outputs -> absolute offset.
        nbytes: its size.
    """

    name: str
    header: bytes
    offsets: dict[int, int]
    nbytes: int


def lay_out(outputs: Sequence[Output], source: DenseCheckpoint | None, max_shard_bytes: int) -> list[Shard]:
    """Return the shards of an output folder.

    Tensors whose copied bytes stand at the same position modulo 4096 in the source share a shard whose data begins so
    that this position is kept: a file system that can share extents (Btrfs, XFS) then stores those bytes once. The
    layout depends on names, shapes and source headers only, never on the machine.
    """
    classes: dict[int, list[int]] = {}
    for index, output in enumerate(outputs):
        classes.setdefault(_residue(output, source), []).append(index)
    largest = max(classes, key=lambda r: _bytes(outputs, classes[r]))
    for residue in [r for r in classes if r != largest and _bytes(outputs, classes[r]) < SHARE_FROM]:
        classes[largest] += classes.pop(residue)
    groups: list[tuple[int, list[int]]] = []
    for residue, members in sorted(classes.items(), key=lambda item: min(item[1])):
        # Whole blocks first, so that odd sizes can't shift the tensors that are to be shared.
        members.sort(key=lambda i: (outputs[i].info.nbytes % BLOCK != 0, i))
        groups += [(residue, part) for part in _cut(outputs, members, max_shard_bytes)]
    return [_shard(outputs, part, residue, n, len(groups)) for n, (residue, part) in enumerate(groups, 1)]


def _residue(output: Output, source: DenseCheckpoint | None) -> int:
    """Return the position modulo 4096 that lets this tensor's bytes be shared; 0 where it does not matter."""
    first = output.pieces[0].origin
    if source is None or not isinstance(first, Copy) or output.info.nbytes % BLOCK:
        return 0
    position = source.span(first.rows)[1] % BLOCK
    return position if position % 8 == 0 else 0


def _bytes(outputs: Sequence[Output], members: list[int]) -> int:
    return sum(outputs[i].info.nbytes for i in members)


def _cut(outputs: Sequence[Output], members: list[int], limit: int) -> list[list[int]]:
    """Cut a run of outputs into shards of at most `limit` bytes; a larger single tensor gets a shard of its own."""
    parts: list[list[int]] = [[]]
    size = 0
    for i in members:
        if parts[-1] and size + outputs[i].info.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(i)
        size += outputs[i].info.nbytes
    return parts


def _shard(outputs: Sequence[Output], members: list[int], residue: int, number: int, total: int) -> Shard:
    tensors: dict[str, tuple[TensorInfo, int]] = {}
    end = 0
    for i in members:
        tensors[outputs[i].name] = (outputs[i].info, end)
        end += outputs[i].info.nbytes
    header = encode_header(tensors, residue, BLOCK)
    offsets = {i: len(header) + tensors[outputs[i].name][1] for i in members}
    name = "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
    return Shard(name, header, offsets, len(header) + end)


def index_json(shards: Sequence[Shard], outputs: Sequence[Output]) -> tuple[str, dict[str, object]] | None:
    """Return the name and content of the index, or None for a single shard."""
    if len(shards) == 1:
        return None
    weight_map = {outputs[i].name: shard.name for shard in shards for i in shard.offsets}
    total = sum(output.info.nbytes for output in outputs)
    return INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
