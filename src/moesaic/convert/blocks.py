"""One MoE layer on disk: how each byte of its experts comes about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesaic.architectures.sparse import ExpertTensor
from moesaic.experts.base import ExpertInit
from moesaic.plan import Copy, Piece, Routed, Rows, Shared, TensorInfo
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec

SCALED: tuple[Matrix, ...] = ("down", "down_bias")
"""The matrices that carry the output's scale: shares and gate compensation are folded into these."""


@dataclass(frozen=True)
class Block:
    """The experts of one MoE layer.

    Args:
        number: of the layer. moe: its numbers. ffn: where the dense matrices stand. infos: of the dense tensors.
        dtype: of the experts; None: each tensor takes that of its dense matrices.
        factors: on the last linear of the shared expert and of the routed experts. experts: the method.
    """

    number: int
    moe: LayerSpec
    ffn: Mapping[Matrix, Rows]
    infos: Mapping[str, TensorInfo]
    dtype: str | None
    factors: tuple[float, float]
    experts: ExpertInit

    def routed(self, tensor: ExpertTensor) -> list[tuple[Piece, ...]]:
        """Return the pieces of each expert's part of a tensor; copies are the same for all."""
        verbatim = self.experts.verbatim(self.moe)
        copied = verbatim.issuperset(tensor.matrices) and self._copies(tensor, self.factors[1])
        if copied and not tensor.transposed:
            return [self._copy_pieces(tensor)] * self.moe.num_experts
        nbytes = self.info(tensor, self.moe.expert_size).nbytes
        made = (Routed(self.number, e, tensor.matrices, tensor.transposed) for e in range(self.moe.num_experts))
        return [(Piece(origin, nbytes),) for origin in made]

    def shared(self, tensor: ExpertTensor) -> tuple[Piece, ...]:
        """Return the pieces of a tensor of the shared expert."""
        whole = self.moe.shared_width == self.moe.width
        copied = whole and self._copies(tensor, self.factors[0])
        if copied and not tensor.transposed:
            return self._copy_pieces(tensor)
        made = Shared(self.number, tensor.matrices, tensor.transposed)
        return (Piece(made, self.info(tensor, self.moe.shared_width).nbytes),)

    def info(self, tensor: ExpertTensor, width: int) -> TensorInfo:
        """Return dtype and shape of one expert's part of an expert tensor."""
        hidden, dtype = self.moe.hidden, self._dtype(tensor)
        rows = sum(hidden if m in SCALED else width for m in tensor.matrices)
        if tensor.matrices[0].endswith("_bias"):
            return TensorInfo(dtype, (rows,))
        columns = width if tensor.matrices[0] == "down" else hidden
        return TensorInfo(dtype, (columns, rows) if tensor.transposed else (rows, columns))

    def stack(self, tensor: ExpertTensor) -> TensorInfo:
        """Return dtype and shape of a tensor that holds all experts' parts."""
        part = self.info(tensor, self.moe.expert_size)
        return TensorInfo(part.dtype, (self.moe.num_experts, *part.shape))

    def _dtype(self, tensor: ExpertTensor) -> str:
        """Return the dtype of an expert tensor: where none is asked for, one that holds its dense matrices exactly."""
        if self.dtype is not None:
            return self.dtype
        dtypes = {self.infos[self.ffn[m].tensor].dtype for m in tensor.matrices}
        mixed = "F64" if "F64" in dtypes else "F32"
        return mixed if len(dtypes) > 1 else dtypes.pop()

    def _copies(self, tensor: ExpertTensor, factor: float) -> bool:
        """Whether the bytes of the dense matrices can stand in the output as they are."""
        dtype, found = self._dtype(tensor), [self.ffn[m] for m in tensor.matrices]
        scaled = factor != 1.0 and any(m in SCALED for m in tensor.matrices)
        return not scaled and all(rows.runs and self.infos[rows.tensor].dtype == dtype for rows in found)

    def _copy_pieces(self, tensor: ExpertTensor) -> tuple[Piece, ...]:
        rows = [self.ffn[m] for m in tensor.matrices]
        width = [self.infos[r.tensor].nbytes // self.infos[r.tensor].shape[0] for r in rows]
        return tuple(Piece(Copy(r), (r.stop - r.start) * w) for r, w in zip(rows, width, strict=True))
