"""The sparse model in numbers: what becomes what, parameters, FLOPs per token, and memory for training it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import ExpertTensor
from moesaic.convert import Conversion
from moesaic.plan import Copy, Piece, Routed, Rows, Shared, TensorInfo
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec

TRAINED, FROZEN = 16, 2
"""Bytes per parameter under AdamW in bf16: weight 2, gradient 2, float32 master 4, two moments 8 (Rajbhandari et al.
2020, ZeRO, arXiv 1910.02054, section 3.1); a frozen one is its weight alone. Activations come on top."""
LOOKED_UP = ("embed", "layer_embed", "other")
"""Roles of matrices that no text token is multiplied by: tables, and the towers of composite models."""
RECURRENT = ("conv", "linear_attention")
"""Kinds of layers whose cost does not grow with the context."""


@dataclass(frozen=True)
class Becomes:
    """What turns into what.

    Args:
        dense_class, sparse_class: as in config.json. moe_layers: their indices. num_layers: of both models.
        num_experts, top_k, expert_size, shared_expert: of an MoE layer; sizes in neurons. width: of the dense FFN.
        granularity: dense width over expert width. experts, router: the methods.
        matrices: dense FFN tensor -> tensors that come from it, `*` for layer and expert.
    """

    dense_class: str
    sparse_class: str
    moe_layers: tuple[int, ...]
    num_layers: int
    num_experts: int
    top_k: int
    expert_size: int
    shared_expert: bool
    width: int
    granularity: float
    experts: str
    router: str
    matrices: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Parameters:
    """Numbers stored in the checkpoints, embedding and output head included; a tied head counts once.

    Args:
        dense, total: of the two models. active: of the MoE for one token: all but the E - K experts it skips, as
            Mixtral's "12.9B active" counts. expert: one expert in one layer. routed: all experts in all layers.
        frozen_at_first: what SPRI's stage one leaves still: the routed matrices that are copies; 0 for other methods.
    """

    dense: int
    total: int
    active: int
    active_ratio: float
    expert: int
    routed: int
    routers: int
    frozen_at_first: int


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one token's forward pass; training takes three times as many.

    Args:
        dense, moe: two per weight of every matrix the token meets (output head included, embedding lookup not), and
            `attention`, the same in both: scores and weighted values against the mean causal context.
        context: tokens of the sequence.
    """

    dense: float
    moe: float
    attention: float
    context: int

    @property
    def ratio(self) -> float:
        """The cost of an MoE token in dense tokens."""
        return self.moe / self.dense


@dataclass(frozen=True)
class Training:
    """Bytes of weights, gradients and AdamW's states in bf16 mixed precision, over all devices, without activations.

    Args:
        dense, full: all of the dense model, all of the MoE. stage_one: SPRI's first stage, None for methods without.
        experts, routers: the routed experts alone, the routers alone.
    """

    dense: int
    full: int
    stage_one: int | None
    experts: int
    routers: int


def becomes(conversion: Conversion) -> Becomes:
    """Return what turns into what."""
    match, shape, layer = conversion.match, conversion.shape, conversion.shape.layer
    return Becomes(
        dense_class=match.family.class_name,
        sparse_class=match.target.class_name,
        moe_layers=shape.moe_layers,
        num_layers=shape.num_layers,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        expert_size=layer.expert_size,
        shared_expert=layer.shared_expert,
        width=layer.width,
        granularity=layer.width / layer.expert_size,
        experts=conversion.options.experts.name(),
        router=conversion.router.name(),
        matrices=_matrices(conversion),
    )


def _matrices(conversion: Conversion) -> dict[str, tuple[str, ...]]:
    layer = conversion.shape.moe_layers[0]
    near = [output for output in conversion.plan.outputs if f".{layer}." in output.name]
    found: dict[str, dict[str, None]] = {}
    for matrix, rows in conversion.plan.ffns[layer].items():
        names = (o.name for o in near if any(_is_from(p, matrix, rows, layer) for p in o.pieces))
        found.setdefault(_starred(rows.tensor), {}).update(dict.fromkeys(map(_starred, names)))
    return {dense: tuple(sparse) for dense, sparse in found.items()}


def _is_from(piece: Piece, matrix: Matrix, rows: Rows, layer: int) -> bool:
    match piece.origin:
        case Copy(source):
            return source == rows
        case Routed() | Shared() as made:
            return made.layer == layer and matrix in made.matrices
    return False


def _starred(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def parameters(conversion: Conversion) -> Parameters:
    """Count the parameters of both models."""
    plan, layer, layers = conversion.plan, conversion.shape.layer, len(conversion.shape.moe_layers)
    dense = sum(info.count for name, info in plan.sources.items() if name not in plan.dropped)
    total = sum(output.info.count for output in plan.outputs)
    expert = sum(map(matrix_sizes(conversion).__getitem__, _expert_matrices(conversion)))
    active = total - layers * (layer.num_experts - layer.top_k) * expert
    return Parameters(
        dense=dense,
        total=total,
        active=active,
        active_ratio=active / total,
        expert=expert,
        routed=layers * layer.num_experts * expert,
        routers=layers * layer.num_experts * layer.hidden,
        frozen_at_first=layers * layer.num_experts * _copied(conversion),
    )


def matrix_sizes(conversion: Conversion) -> dict[Matrix, int]:
    """Return the number of elements of each matrix of a routed expert."""
    return sizes(conversion.shape.layer, conversion.shape.layer.expert_size)


def sizes(layer: LayerSpec, width: int) -> dict[Matrix, int]:
    """Return the number of elements of each matrix of an FFN of `width` neurons."""
    whole = layer.hidden * width
    return {
        "gate": whole,
        "up": whole,
        "down": whole,
        "gate_bias": width,
        "up_bias": width,
        "down_bias": layer.hidden,
    }


def _expert_matrices(conversion: Conversion) -> list[Matrix]:
    tensors: Iterable[ExpertTensor] = conversion.match.target.experts
    return [matrix for tensor in tensors for matrix in tensor.matrices]


def _copied(conversion: Conversion) -> int:
    """Return how many of an expert's parameters SPRI and its controls copy."""
    experts, of = conversion.options.experts, matrix_sizes(conversion)
    if not experts.residual:
        return 0
    return sum(of[m] for m in _expert_matrices(conversion) if m in experts.verbatim(conversion.shape.layer))


def flops(conversion: Conversion, context: int = 4096) -> Flops:
    """Count the operations of one token in both models."""
    outputs, decoder, layer = conversion.outputs, conversion.match.decoder, conversion.shape.layer
    context = min(context, decoder.max_positions)
    looked_up = sum(prod(s.shape) for s in outputs.holdings.stored if s.parts[0].role in LOOKED_UP and len(s.shape) > 1)
    head = decoder.vocab * decoder.hidden
    kept = (info for name, info in conversion.plan.sources.items() if name not in conversion.plan.dropped)
    dense = _multiplied(kept) - looked_up + head * decoder.tied
    weights = sum(matrix_sizes(conversion)[m] for m in _expert_matrices(conversion) if not m.endswith("_bias"))
    skipped = len(conversion.shape.moe_layers) * (layer.num_experts - layer.top_k) * weights
    moe = _multiplied(o.info for o in conversion.plan.outputs) - looked_up - skipped + head * outputs.decoder.tied
    attention = sum(_attention(decoder, index, context) for index in range(decoder.num_layers))
    return Flops(2 * dense + attention, 2 * moe + attention, attention, context)


def _multiplied(infos: Iterable[TensorInfo]) -> int:
    return sum(info.count for info in infos if len(info.shape) > 1)


def _attention(decoder: Decoder, layer: int, context: int) -> float:
    """Return the operations of one layer's scores and weighted values, for a token at a mean place in the context."""
    kind = decoder.layer_kinds[layer] if decoder.layer_kinds else ""
    if kind in RECURRENT:
        return 0.0
    window = decoder.windows[layer] if decoder.windows else None
    if window is None and kind.startswith("sliding"):
        window = decoder.config.get("sliding_window")
    seen = min(window or context, context)
    mean = (seen * (seen + 1) / 2 + (context - seen) * seen) / context
    return 4 * decoder.heads * decoder.head_dim * mean


def training(conversion: Conversion) -> Training:
    """Return the memory of training either model, and parts of the MoE."""
    count = parameters(conversion)

    def held(trained: int) -> int:
        return FROZEN * count.total + (TRAINED - FROZEN) * trained

    return Training(
        dense=TRAINED * count.dense,
        full=held(count.total),
        stage_one=held(count.total - count.frozen_at_first) if conversion.options.experts.residual else None,
        experts=held(count.routed),
        routers=held(count.routers),
    )
