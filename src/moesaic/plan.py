"""The plan of a conversion: every output tensor, and how each of its bytes comes about. No tensor is read for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from moesaic.errors import PlanError, listing
from moesaic.shapes import Matrix

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of one element, by safetensors' dtype name."""
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The float dtypes that weights may have: safetensors' name -> torch's and config.json's."""


@dataclass(frozen=True)
class TensorInfo:
    """Dtype (as safetensors names it) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a source tensor; all of it for most.

    Args:
        step: every how many rows. transposed: stored [in, out], so that what is read as rows are columns there.
    """

    tensor: str
    start: int
    stop: int
    step: int = 1
    transposed: bool = False

    @property
    def runs(self) -> bool:
        """Whether the rows are one run of bytes on disk."""
        return self.step == 1 and not self.transposed


@dataclass(frozen=True)
class Copy:
    """These source rows, byte for byte."""

    rows: Rows


@dataclass(frozen=True)
class Fill:
    """One value everywhere."""

    value: float


@dataclass(frozen=True)
class Fold:
    """Source rows, changed element by element: `scale * x + offset`, or rotary rows put into half-split order.

    Args:
        rotary: (head_dim, rotary dims per head) where rows are permuted from interleaved pairs to halves.
    """

    rows: Rows
    scale: float = 1.0
    offset: float = 0.0
    rotary: tuple[int, int] | None = None


@dataclass(frozen=True)
class Routed:
    """Matrices of one routed expert, stacked by rows, transposed if the target stores them so."""

    layer: int
    expert: int
    matrices: tuple[Matrix, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Shared:
    """Matrices of the shared expert."""

    layer: int
    matrices: tuple[Matrix, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Router:
    """The router weight of one layer."""

    layer: int


Origin = Copy | Fill | Fold | Routed | Shared | Router


@dataclass(frozen=True)
class Piece:
    """A run of an output tensor's bytes with one origin."""

    origin: Origin
    nbytes: int


@dataclass(frozen=True)
class Output:
    """One tensor to write: its pieces follow each other and fill it."""

    name: str
    info: TensorInfo
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Plan:
    """All that will be written, and what becomes of every source tensor.

    Args:
        sources: dtype and shape of every tensor of the dense checkpoint.
        ffns: for each MoE layer, where the dense FFN's matrices stand.
        outputs: every tensor to write.
        dropped: source tensors that are left out on purpose, each with the reason.
        repeats: those of them that are left out since they are tied to another -> that one, which they must equal.
    """

    sources: Mapping[str, TensorInfo]
    ffns: Mapping[int, Mapping[Matrix, Rows]]
    outputs: tuple[Output, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    repeats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise PlanError("The plan does not add up; nothing was written:\n" + listing(problems))

    def _problems(self) -> Iterator[str]:
        names: set[str] = set()
        used = {rows.tensor for ffn in self.ffns.values() for rows in ffn.values()}
        for output in self.outputs:
            if output.name in names:
                yield f"{output.name}: an output tensor must be written once. Got two."
            names.add(output.name)
            if sum(piece.nbytes for piece in output.pieces) != output.info.nbytes:
                yield f"{output.name}: its pieces must fill its {output.info.nbytes} bytes."
            used |= {piece.origin.rows.tensor for piece in output.pieces if isinstance(piece.origin, Copy | Fold)}
        for name in self.sources:
            if (name in used) == (name in self.dropped):
                yield f"{name}: a source tensor must be used or listed as dropped, not both or neither."

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return sum(output.info.nbytes for output in self.outputs)

    @property
    def bytes_read(self) -> int:
        """Bytes of all source tensors in use, each read once."""
        return sum(info.nbytes for name, info in self.sources.items() if name not in self.dropped)

    def digest(self, **context: Any) -> str:
        """Return a hash of the plan and of all else that decides the output's bytes."""
        rows = [
            (o.name, o.info.dtype, o.info.shape, [(type(p.origin).__name__, asdict(p.origin)) for p in o.pieces])
            for o in self.outputs
        ]
        return hashlib.sha256(json.dumps([rows, context], sort_keys=True).encode()).hexdigest()
