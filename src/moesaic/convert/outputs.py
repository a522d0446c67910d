"""From a matched model to the plan: where each dense tensor goes, and what stands in the place of its FFNs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from moesaic.architectures.dense import LLAMA_TABLE, Decoder, Part, Stored
from moesaic.architectures.match import Match
from moesaic.architectures.sparse import Constant
from moesaic.convert.blocks import Block
from moesaic.convert.holdings import Holdings
from moesaic.experts.base import ExpertInit
from moesaic.plan import FLOATS, Copy, Fill, Fold, Output, Piece, Plan, Router, Rows, TensorInfo
from moesaic.shapes import Matrix
from moesaic.spec import ModelShape

FFN_ROLES: tuple[Matrix, ...] = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
LLAMA_NAMES = {entry.role: entry.name for entry in LLAMA_TABLE}


@dataclass(frozen=True)
class Outputs:
    """Makes the plan of one conversion.

    Args:
        match: family, decoder, target and wrapper. shape: the sparse model's numbers. experts: the method.
        holdings: the dense tensors and their roles.
        dtype: cast floats to this; None: keep each tensor's. untie: write an output head although it is tied.
    """

    match: Match
    shape: ModelShape
    experts: ExpertInit
    holdings: Holdings
    dtype: str | None = None
    untie: bool = False

    @cached_property
    def folds(self) -> frozenset[str]:
        """Features of the decoder that are computed into the weights."""
        return (self.match.target.folds - self.match.target.supports) & self.match.decoder.features.keys()

    @cached_property
    def writes_head(self) -> bool:
        """Whether a tied embedding is also written as an output head of its own."""
        return self.match.decoder.tied and (self.untie or "embedding_scale" in self.folds)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder as the target's config shall describe it: without what was folded into the weights."""
        dense = self.match.decoder
        return replace(
            dense,
            tied=dense.tied and not self.writes_head,
            embedding_scale=1.0 if "embedding_scale" in self.folds else dense.embedding_scale,
            norm_offset=0.0 if "norm_offset" in self.folds else dense.norm_offset,
        )

    @cached_property
    def factors(self) -> tuple[float, float]:
        """Factors on the last linear of the shared expert and of the routed experts."""
        shared, routed = self.experts.shares(self.shape.layer)
        return shared / self.match.target.shared_gate, routed

    @cached_property
    def ffns(self) -> dict[int, dict[Matrix, Rows]]:
        """Where the dense FFN of each MoE layer stands."""
        found: dict[int, dict[Matrix, Rows]] = {layer: {} for layer in self.shape.moe_layers}
        for tensor in self.holdings.stored:
            for part in tensor.parts:
                for role in FFN_ROLES:
                    if part.role == role and tensor.layer in found:
                        found[tensor.layer][role] = Rows(tensor.name, part.start, part.stop)
        return found

    @cached_property
    def new_dtype(self) -> str:
        """The dtype of routers and constants: that of the first FFN that becomes MoE."""
        return self.dtype or self.holdings.infos[self.ffns[self.shape.moe_layers[0]]["up"].tensor].dtype

    def plan(self) -> Plan:
        """Return the plan: embeddings first, then layer by layer."""
        by_layer: dict[int | None, list[Output]] = {}
        for tensor in self.holdings.stored:
            for part in tensor.parts:
                if tensor.layer not in self.ffns or part.role not in FFN_ROLES:
                    by_layer.setdefault(tensor.layer, []).append(self._body(tensor, part))
                if tensor.layer in self.ffns and part.role in self.match.target.copies:
                    name = self._named(self.match.target.copies[part.role], tensor.layer)
                    by_layer[tensor.layer].append(self._kept(name, Copy(Rows(tensor.name, part.start, part.stop))))
        outputs = by_layer.get(None, [])
        if self.writes_head:
            embed = next(t for t in self.holdings.stored if t.parts[0].role == "embed")
            rows = Rows(embed.name, 0, embed.shape[0])
            outputs.append(self._kept(self.holdings.on_disk(LLAMA_NAMES["head"]), Copy(rows)))
        outputs += self._constants("model", None)
        for layer in range(self.shape.num_layers):
            outputs += by_layer.get(layer, [])
            outputs += self._constants("layer", layer)
            if layer in self.ffns:
                outputs += self._sparse(layer)
            outputs += self._constants("moe" if layer in self.ffns else "dense", layer)
        return Plan(self.holdings.infos, self.ffns, tuple(outputs), self.holdings.dropped, self.holdings.repeats)

    def _body(self, tensor: Stored, part: Part) -> Output:
        """Return a tensor outside the sparse FFNs: copied, or with a feature folded in."""
        rows = Rows(tensor.name, part.start, part.stop)
        template = self.match.target.rename.get(part.role) or (LLAMA_NAMES[part.role] if len(tensor.parts) > 1 else "")
        name = self.holdings.on_disk(template.format(layer=tensor.layer)) if template else tensor.name
        dense = self.match.decoder
        if "norm_offset" in self.folds and part.role.endswith("_norm"):
            return self._kept(name, Fold(rows, offset=dense.norm_offset))
        if "embedding_scale" in self.folds and part.role == "embed":
            return self._kept(name, Fold(rows, scale=dense.embedding_scale))
        if "interleaved_rotary" in self.folds and part.role in ("q", "k", "q_bias", "k_bias"):
            rotary = int(dense.head_dim * dense.rope.get("partial_rotary_factor", 1.0))
            return self._kept(name, Fold(rows, rotary=(dense.head_dim, rotary)))
        return self._kept(name, Copy(rows))

    def _kept(self, name: str, origin: Copy | Fold) -> Output:
        """Return an output with the dtype and trailing shape of its source, cast where a dtype is asked for."""
        rows = origin.rows
        info = self.holdings.infos[rows.tensor]
        dtype = self.dtype if self.dtype and info.dtype in FLOATS else info.dtype
        new = TensorInfo(dtype, (rows.stop - rows.start, *info.shape[1:]) if info.shape else ())
        if dtype != info.dtype and isinstance(origin, Copy):
            origin = Fold(rows)
        return Output(name, new, (Piece(origin, new.nbytes),))

    def _sparse(self, layer: int) -> Iterator[Output]:
        """Yield router, routed experts and shared expert of one layer."""
        target, moe, block = self.match.target, self.shape.layer, self._block(layer)
        router = TensorInfo(self.new_dtype, (moe.num_experts, moe.hidden))
        yield Output(self._named(target.router, layer), router, (Piece(Router(layer), router.nbytes),))
        for tensor in target.experts:
            pieces = block.routed(tensor)
            if "{expert}" in tensor.name:
                for expert, found in enumerate(pieces):
                    name = self._named(tensor.name, layer, expert)
                    yield Output(name, block.info(tensor, moe.expert_size), found)
            else:
                every = tuple(piece for found in pieces for piece in found)
                yield Output(self._named(tensor.name, layer), block.stack(tensor), every)
        for tensor in target.shared if moe.shared_expert else ():
            yield Output(self._named(tensor.name, layer), block.info(tensor, moe.shared_width), block.shared(tensor))

    def _block(self, layer: int) -> Block:
        infos, factors = self.holdings.infos, self.factors
        return Block(layer, self.shape.layer, self.ffns[layer], infos, self.dtype, factors, self.experts)

    def _named(self, template: str, layer: int | None, expert: int = 0) -> str:
        return self.holdings.on_disk(template.format(layer=layer, expert=expert))

    def _constants(self, scope: str, layer: int | None) -> Iterator[Output]:
        moe = self.shape.layer
        present = {*self.match.decoder.features, *(["shared_expert"] if moe.shared_expert else [])}
        for constant in self.match.target.constants:
            wanted = constant.when is None or constant.when in present
            if constant.scope == scope and wanted and constant.unless not in present:
                yield self._constant(constant, layer)

    def _constant(self, constant: Constant, layer: int | None) -> Output:
        dims = {**self.match.decoder.dims, "E": self.shape.layer.num_experts, "1": 1}
        shape = tuple(dims[letter] for letter in constant.shape)
        info = TensorInfo("F32" if constant.float32 else self.new_dtype, shape)
        return Output(self._named(constant.name, layer), info, (Piece(Fill(constant.value), info.nbytes),))
