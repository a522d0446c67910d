"""The routing of a whole batch, put together from micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from moesaic.calibration.ranks import Ranks
from moesaic.lazy import torch
from moesaic.observing import MoEBlock
from moesaic.routing import NO_GROUP, Routing, scores, wide


@dataclass(frozen=True)
class Pooled:
    """One layer's routing of a whole batch.

    Args:
        routing: of all tokens; its `logits_TE` is a leaf that asks for a gradient, in float32 or wider.
        parts: rows of each run of the layer in this process, in the order in which they ran.
    """

    routing: Routing
    parts: tuple[slice, ...]


def pool(runs: Sequence[Routing], blocks: Sequence[MoEBlock], ranks: Ranks) -> dict[str, Pooled]:
    """Return the routing over all runs of all processes, by layer; a layer without any token is left out.

    Tokens stand in the order of the processes, then of the runs; each run's sequences stay apart from the others'. A
    layer may run in some micro-batches or processes only (a vision tower), or several times in one pass.

    Args:
        runs: routings of this process, each with the path of its layer. blocks: all MoE layers of the model.
    """
    own = {block.path: [routing for routing in runs if routing.layer == block.path] for block in blocks}
    sizes = {path: [len(routing.ids_TK) for routing in found] for path, found in own.items()}
    layers = [joined(found) if found else None for found in own.values()]
    if ranks.size > 1:
        whole, before = _gathered(layers, blocks, ranks)
    else:
        whole, before = layers, [0] * len(layers)
    return {
        block.path: _pooled(routing, block, start, sizes[block.path])
        for block, routing, start in zip(blocks, whole, before, strict=True)
        if routing is not None and len(routing.ids_TK)
    }


def _pooled(routing: Routing, block: MoEBlock, before: int, sizes: list[int]) -> Pooled:
    logits_TE = wide(routing.logits_TE.detach()).requires_grad_()
    with torch.enable_grad():
        probs_TE = scores(logits_TE, block.score)
    parts = tuple(slice(*ends) for ends in pairwise(accumulate(sizes, initial=before)))
    return Pooled(replace(routing, logits_TE=logits_TE, probs_TE=probs_TE), parts)


def joined(parts: Sequence[Routing]) -> Routing:
    """Join the tokens of several routings of one layer, without their gradients."""
    first, *others = parts
    if not others:
        return first
    sequences = [_column(part.sequence_T, part, 0) for part in parts]
    start = 0 * sequences[0].sum()  # on the device, so that no number is waited for
    for index, sequence in enumerate(sequences):
        sequences[index] = sequence + start
        start = torch.cat([start[None], sequences[index] + 1]).max()
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


def _column(given: torch.Tensor | None, routing: Routing, otherwise: int) -> torch.Tensor:
    if given is not None:
        return given
    return torch.full((len(routing.ids_TK),), otherwise, device=routing.ids_TK.device)


def _gathered(
    layers: Sequence[Routing | None], blocks: Sequence[MoEBlock], ranks: Ranks
) -> tuple[list[Routing | None], list[int]]:
    """Return every process's routings joined, and how many tokens of each layer stand before this process's.

    Three collectives for all layers together: counts, then numbers, then indices, each of all layers as one row.
    """
    weight = blocks[0].router_weight
    home, dtype = weight.device, torch.promote_types(weight.dtype, torch.float32)
    own = [(0, 0, False) if one is None else (*one.ids_TK.shape, one.group_T is not None) for one in layers]
    counts_RL3: list[list[list[int]]] = torch.stack(_all_gather(torch.tensor(own, device=home), ranks)).tolist()
    rows_RL = [[rows for rows, _, _ in row] for row in counts_RL3]
    top_k = [max(row[layer][1] for row in counts_RL3) for layer in range(len(layers))]
    grouped = any(has for row in counts_RL3 for _, _, has in row)
    experts = [len(block.router_weight) for block in blocks]
    reals = [_flat(one, _numbers, dtype, home) for one in layers]
    whole = [_flat(one, _integers, torch.int64, home) for one in layers]
    real_RL = _exchanged(reals, [e + k for e, k in zip(experts, top_k, strict=True)], rows_RL, ranks)
    whole_RL = _exchanged(whole, [k + 2 for k in top_k], rows_RL, ranks)
    made: list[Routing | None] = []
    for layer, block in enumerate(blocks):
        parts = []
        for real, ints in zip(real_RL, whole_RL, strict=True):
            logits_TE, weights_TK = real[layer].split([experts[layer], top_k[layer]], 1)
            ids_TK, sequence_T1, group_T1 = ints[layer].split([top_k[layer], 1, 1], 1)
            group_T = group_T1[:, 0] if grouped else None
            parts.append(Routing(logits_TE, logits_TE, ids_TK, weights_TK, block.path, sequence_T1[:, 0], group_T))
        made.append(joined(parts))
    return made, [sum(row[layer] for row in rows_RL[: ranks.rank]) for layer in range(len(layers))]


def _numbers(routing: Routing) -> list[torch.Tensor]:
    return [routing.logits_TE.detach(), routing.weights_TK.detach()]


def _integers(routing: Routing) -> list[torch.Tensor]:
    sequence_T, group_T = _column(routing.sequence_T, routing, 0), _column(routing.group_T, routing, NO_GROUP)
    return [routing.ids_TK, sequence_T[:, None], group_T[:, None]]


def _flat(
    routing: Routing | None,
    columns: Callable[[Routing], list[torch.Tensor]],
    dtype: torch.dtype,
    home: torch.device,
) -> torch.Tensor:
    if routing is None:
        return torch.empty(0, dtype=dtype, device=home)
    return torch.cat([column.to(home, dtype) for column in columns(routing)], 1).flatten()


def _exchanged(
    flat: Sequence[torch.Tensor], widths: list[int], rows_RL: list[list[int]], ranks: Ranks
) -> list[list[torch.Tensor]]:
    """Return every process's matrices, given their widths and how many rows each process has of each."""
    lengths_RL = [[rows * width for rows, width in zip(row, widths, strict=True)] for row in rows_RL]
    room = max(map(sum, lengths_RL))
    own = torch.cat(list(flat))
    rows_R = _all_gather(torch.cat([own, own.new_zeros(room - len(own))]), ranks)
    return [
        [part.reshape(-1, width) for part, width in zip(row[: sum(sizes)].split(sizes), widths, strict=True)]
        for row, sizes in zip(rows_R, lengths_RL, strict=True)
    ]


def _all_gather(tensor: torch.Tensor, ranks: Ranks) -> list[torch.Tensor]:
    found = [torch.empty_like(tensor) for _ in range(ranks.size)]
    torch.distributed.all_gather(found, tensor)
    return found
