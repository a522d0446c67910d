"""The routing of a whole batch, put together from micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from moesaic.calibration.ranks import Ranks
from moesaic.lazy import torch
from moesaic.routing import NO_GROUP, Routing, Score, scores


@dataclass(frozen=True)
class Pooled:
    """One layer's routing of a whole batch.

    Args:
        logits_TE: of all tokens, a leaf that asks for a gradient.
        routing: computed from it. parts: rows of each of this process's micro-batches.
    """

    logits_TE: torch.Tensor
    routing: Routing
    parts: tuple[slice, ...]


def pool(micros: Sequence[Sequence[Routing]], score: Sequence[Score], ranks: Ranks) -> list[Pooled]:
    """Return each layer's routing over all micro-batches and processes, in the order of ranks, then of micro-batches.

    Args:
        micros: for each micro-batch of this process, each layer's routing. score: of each layer.
    """
    layers = [joined([micro[layer] for micro in micros]) for layer in range(len(micros[0]))]
    sizes = [[len(micro[layer].logits_TE) for micro in micros] for layer in range(len(layers))]
    whole, before = _gathered(layers, ranks) if ranks.size > 1 else (layers, [0] * len(layers))
    return [_pooled(*each) for each in zip(whole, score, before, sizes, strict=True)]


def _pooled(routing: Routing, score: Score, before: int, sizes: list[int]) -> Pooled:
    wide = routing.logits_TE.dtype if routing.logits_TE.dtype == torch.float64 else torch.float32
    logits_TE = routing.logits_TE.detach().to(wide, copy=True).requires_grad_()
    with torch.enable_grad():
        probs_TE = scores(logits_TE, score)
    stops = list(accumulate(sizes, initial=before))
    parts = tuple(slice(start, stop) for start, stop in pairwise(stops))
    made = Routing(
        logits_TE,
        probs_TE,
        routing.ids_TK,
        routing.weights_TK,
        routing.layer,
        routing.sequence_T,
        routing.group_T,
    )
    return Pooled(logits_TE, made, parts)


def joined(parts: Sequence[Routing]) -> Routing:
    """Join the tokens of several routings of one layer; each part's sequences stay apart from the others'."""
    first = parts[0]
    sequences, start = [], 0
    for part in parts:
        sequence = _column(part.sequence_T, part, 0)
        sequences.append(sequence + start)
        start += int(sequence.max()) + 1 if len(sequence) else 0
    grouped = any(part.group_T is not None for part in parts)
    return Routing(
        torch.cat([part.logits_TE.detach() for part in parts]),
        torch.cat([part.probs_TE.detach() for part in parts]),
        torch.cat([part.ids_TK for part in parts]),
        torch.cat([part.weights_TK.detach() for part in parts]),
        first.layer,
        torch.cat(sequences),
        torch.cat([_column(part.group_T, part, NO_GROUP) for part in parts]) if grouped else None,
    )


def _indices(routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
    return _column(routing.sequence_T, routing, 0), _column(routing.group_T, routing, NO_GROUP)


def _column(given: torch.Tensor | None, routing: Routing, otherwise: int) -> torch.Tensor:
    if given is not None:
        return given
    return torch.full((len(routing.logits_TE),), otherwise, device=routing.logits_TE.device)


def _gathered(layers: Sequence[Routing], ranks: Ranks) -> tuple[list[Routing], list[int]]:
    """Return every process's routings joined, and how many tokens of each layer stand before this process's.

    Three collectives for all layers together: counts, then numbers and indices of all layers as one row each.
    """
    device = layers[0].logits_TE.device
    counts_L = torch.tensor([len(layer.logits_TE) for layer in layers], device=device)
    counts_RL = torch.stack(_all_gather(counts_L, ranks)).tolist()
    reals = [torch.cat([layer.logits_TE, layer.weights_TK.to(layer.logits_TE.dtype)], 1) for layer in layers]
    whole = [torch.cat([layer.ids_TK, *(x[:, None] for x in _indices(layer))], 1) for layer in layers]
    real_R, whole_R = (_exchanged(columns, counts_RL, ranks) for columns in (reals, whole))
    grouped = max(ranks.each(any(layer.group_T is not None for layer in layers)))
    made, before = [], []
    for index, layer in enumerate(layers):
        parts = []
        for real, ints in zip(real_R, whole_R, strict=True):
            logits_TE, weights_TK = real[index].split([layer.num_experts, layer.weights_TK.shape[1]], 1)
            ids_TK, tail = ints[index][:, :-2], ints[index][:, -2:]
            parts.append(
                Routing(
                    logits_TE, logits_TE, ids_TK, weights_TK, layer.layer, tail[:, 0], tail[:, 1] if grouped else None
                )
            )
        made.append(joined(parts))
        before.append(sum(row[index] for row in counts_RL[: ranks.rank]))
    return made, before


def _exchanged(columns: Sequence[torch.Tensor], counts_RL: list[list[int]], ranks: Ranks) -> list[list[torch.Tensor]]:
    """Return every process's matrices, given how many rows each of them has there."""
    widths = [matrix.shape[1] for matrix in columns]
    dtype = torch.promote_types(columns[0].dtype, torch.float32) if columns[0].is_floating_point() else torch.int64
    lengths = [[rows * width for rows, width in zip(counts, widths, strict=True)] for counts in counts_RL]
    room = max(map(sum, lengths))
    flat = torch.cat([matrix.reshape(-1).to(dtype) for matrix in columns])
    flat = torch.cat([flat, flat.new_zeros(room - len(flat))])
    rows_R = _all_gather(flat, ranks)
    return [
        [part.reshape(-1, width) for part, width in zip(row[: sum(sizes)].split(sizes), widths, strict=True)]
        for row, sizes in zip(rows_R, lengths, strict=True)
    ]


def _all_gather(tensor: torch.Tensor, ranks: Ranks) -> list[torch.Tensor]:
    found = [torch.empty_like(tensor) for _ in range(ranks.size)]
    torch.distributed.all_gather(found, tensor.contiguous())
    return found
