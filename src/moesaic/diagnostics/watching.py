"""Hooks on routers and experts: what the MoE layers of a model do with the real tokens of a batch.

Unlike `observing.Observer`, which tells of whole passes, this sees a tower that runs alone, and what reaches experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moesaic.calibration.readers.base import Feed
from moesaic.calibration.rows import match
from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.observing import MoEBlock, moe_blocks
from moesaic.observing.rows import Side, side
from moesaic.routing import Routing, scores

IDS: Mapping[Side, str] = {"text": "input_ids", "decoder": "decoder_input_ids"}
"""Where the token ids stand that a layer of each side reads; pictures have none."""


@dataclass(frozen=True)
class Seen:
    """What one MoE layer did with one batch, N rows with padding, T of them real tokens.

    Args:
        block: the layer. routing: of the real tokens; their labels are its groups.
        place_T: the row of each real token, sequence * length + position. length: rows of a sequence; 0 where rows do
            not divide evenly among the batch.
        input_ND, asked_ND: what experts and router were given.
        token_T: token ids, where the layer reads text; the same object for all layers of a tower.
    """

    block: MoEBlock
    routing: Routing
    place_T: torch.Tensor
    length: int
    input_ND: torch.Tensor
    asked_ND: torch.Tensor
    token_T: torch.Tensor | None

    @property
    def path(self) -> str:
        return self.block.path


@dataclass(frozen=True)
class _Places:
    """What layers of the same tower share: where real tokens stand, their labels and their ids."""

    place_T: torch.Tensor
    length: int
    label_T: torch.Tensor
    token_T: torch.Tensor | None


class Watch:
    """Tells of each layer as it runs; use it as a context around all passes, and `begin` each of them.

    Args:
        model: any module with these layers. see: told of each run of a layer.
        encoder_decoder: whether the model has a decoder beside an encoder.
    """

    def __init__(self, model: torch.nn.Module, see: Callable[[Seen], None], *, encoder_decoder: bool = False) -> None:
        self.blocks = blocks_of(model)
        self._see = see
        self._sides = [side(block.path, encoder_decoder=encoder_decoder) for block in self.blocks]
        self._asked: dict[int, torch.Tensor] = {}
        self._logits: dict[int, torch.Tensor] = {}

    def begin(self, feed: Feed) -> None:
        """Say which batch runs next."""
        self._feed = feed
        self._known: dict[tuple[int, Side, torch.device], _Places] = {}
        self._asked.clear()
        self._logits.clear()

    def __enter__(self) -> Watch:
        self._handles = []
        for index, block in enumerate(self.blocks):
            self._handles += [
                block.holder.register_forward_pre_hook(partial(self._asks, index), with_kwargs=True),
                block.router.register_forward_hook(partial(self._scored, index)),
                block.experts.register_forward_pre_hook(partial(self._chose, index), with_kwargs=True),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _asks(self, index: int, _module: Any, args: Any, kwargs: Any) -> None:
        self._asked[index] = (*args, *kwargs.values())[0].detach().flatten(0, -2)

    def _scored(self, index: int, _module: Any, _args: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        self._logits[index] = logits.detach().flatten(0, -2)

    def _chose(self, index: int, _module: Any, args: Any, kwargs: Any) -> None:
        block, given = self.blocks[index], (*args, *kwargs.values())
        if len(given) != 3 or index not in self._logits:
            raise ObservationError(
                f"{block.path}: a MoE layer must run its router, then its experts with tokens, ids and gates. Got "
                f"{len(given)} arguments. Use a class that moesaic converts to."
            )
        x, ids, weights = (one.detach().flatten(0, -2) for one in given)
        places = self._places(len(x), self._sides[index], x.device)
        place_T = places.place_T
        logits_TE = self._logits.pop(index)[place_T]
        if not bool(logits_TE.isfinite().all()):
            raise ObservationError(
                f"{block.path}: router logits must be finite. Got NaN or infinity on this data. Check the weights, and "
                "take float32."
            )
        routing = Routing(
            logits_TE,
            scores(logits_TE, block.score),
            ids[place_T],
            weights[place_T],
            block.path,
            group_T=places.label_T,
        )
        self._see(Seen(block, routing, place_T, places.length, x, self._asked.pop(index, x), places.token_T))

    def _places(self, count: int, where: Side, device: torch.device) -> _Places:
        key = (count, where, device)
        if key not in self._known:
            rows = match(self._feed, count, device)
            place_T = torch.arange(count, device=device) if rows.keep_N is None else rows.keep_N.nonzero()[:, 0]
            length, rest = divmod(count, len(self._feed.labels_B))
            given = self._feed.inputs.get(IDS.get(where, ""))
            fits = isinstance(given, torch.Tensor) and given.numel() == count
            token_T = given.flatten().to(device)[place_T] if fits and given is not None else None
            self._known[key] = _Places(place_T, 0 if rest else length, rows.label_T, token_T)
        return self._known[key]


def blocks_of(model: torch.nn.Module) -> Sequence[MoEBlock]:
    """Return the MoE layers of a model.

    Raises:
        ObservationError: where it is dense, or its experts have no router.
    """
    try:
        return moe_blocks(model)
    except ObservationError:
        lone = next((path for path, module in model.named_modules() if _is_experts(path, module)), None)
        if lone is None:
            raise ObservationError(
                f"{type(model).__name__}: a model that is diagnosed must have MoE layers. It is dense. Make them with "
                "`moesaic upcycle`, and load it with transformers 5."
            ) from None
        raise ObservationError(
            f"{type(model).__name__}: experts must have a router beside them (`gate` or `router`, with a row for each "
            f"expert). Got none beside {lone}. Load the whole model, under a class that moesaic converts to."
        ) from None


def _is_experts(path: str, module: torch.nn.Module) -> bool:
    own = module.parameters(recurse=False)
    return path.rpartition(".")[2] == "experts" and any(weight.ndim == 3 for weight in own)
