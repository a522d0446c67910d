"""Observing routers: one `Routing` per MoE layer and forward pass, from any model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moesaic.architectures import SparseTarget, records
from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.routing import NO_GROUP, Routing, Score, scores

GROUPS = "group_ids"
"""Key of a batch under which the groups of its sequences [B] or tokens [B, T] stand; the model never sees it."""


@dataclass(frozen=True)
class MoEBlock:
    """One MoE layer of a model.

    Args:
        path: of the module that holds router and experts. router: the module whose weight [E, D] makes the logits.
        experts: the module that is called with (tokens, ids, gates). score: how logits become scores.
    """

    path: str
    router: torch.nn.Module
    experts: torch.nn.Module
    score: Score

    @property
    def router_weight(self) -> torch.Tensor:
        """The router's rows [E, D], a parameter of the model."""
        return self.router.get_parameter("weight")


@dataclass(frozen=True)
class Seen:
    """What one layer did in one pass, for all rows, padding included."""

    block: MoEBlock
    logits_NE: torch.Tensor
    ids_NK: torch.Tensor
    weights_NK: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """One forward pass of a whole model.

    Args:
        model: the module that was called. inputs: its arguments by name. groups: of sequences [B] or tokens [B, T].
        seen: what each layer did, in the order in which they ran. output: what the model returned.
    """

    model: torch.nn.Module
    inputs: Mapping[str, Any]
    groups: torch.Tensor | None
    seen: tuple[Seen, ...]
    output: Any

    @cached_property
    def routings(self) -> tuple[Routing, ...]:
        """The routing of the real tokens of each layer; gradients reach the routers through it."""
        return tuple(self._routing(one) for one in self.seen)

    def _routing(self, seen: Seen) -> Routing:
        logits = seen.logits_NE
        probs = scores(logits, seen.block.score)
        rows = tokens(self.inputs, len(logits), seen.block.path, self.groups)
        sequence, group = (None if x is None else x.to(logits.device) for x in (rows.sequence_N, rows.group_N))
        whole = Routing(logits, probs, seen.ids_NK, seen.weights_NK, seen.block.path, sequence, group)
        return whole if rows.keep_N is None else whole.select(rows.keep_N.to(logits.device))


@dataclass(frozen=True)
class TokenRows:
    """Which rows of a layer's input are real, and where they stand. None: all are; unknown; no groups."""

    keep_N: torch.Tensor | None
    sequence_N: torch.Tensor | None
    group_N: torch.Tensor | None


def tokens(inputs: Mapping[str, Any], rows: int, path: str, groups: torch.Tensor | None = None) -> TokenRows:
    """Return what the inputs of a pass say of the rows of one layer.

    A mask [B, T] holds for layers with B * T rows. Of an encoder-decoder's masks, the decoder's hold for layers with
    `decoder` in their path; where labels alone are given, the decoder reads them one place later.
    """
    batch = _batch(inputs)
    each, rest = divmod(rows, batch)
    if rest or not each:
        return TokenRows(None, None, None)
    mask = _mask(inputs, batch, each, path)
    sequence = torch.arange(batch)[:, None].expand(batch, each)
    position = inputs.get("position_ids")
    if isinstance(position, torch.Tensor) and position.shape == (batch, each):  # several texts packed into one row
        starts = position.detach().cpu() == 0
        starts[:, 0] = True
        sequence = starts.flatten().cumsum(0).reshape(batch, each) - 1
    group = None
    if groups is not None:
        given = groups.detach().cpu()
        whole = given[:, None] if given.ndim == 1 else given
        fits = whole.shape[0] == batch and whole.shape[1] in (1, each)
        group = (whole.expand(batch, each) if fits else torch.full((batch, each), NO_GROUP)).flatten()
    return TokenRows(None if mask is None else mask.flatten(), sequence.flatten(), group)


def _batch(inputs: Mapping[str, Any]) -> int:
    mains = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values", "decoder_input_ids")
    given = [value for name in mains if isinstance(value := inputs.get(name), torch.Tensor)]
    every = given or [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim]
    return len(every[0]) if every else 1


def _mask(inputs: Mapping[str, Any], batch: int, each: int, path: str) -> torch.Tensor | None:
    masks = [inputs.get("attention_mask")]
    labels = inputs.get("labels")
    if "decoder" in path and ("decoder_attention_mask" in inputs or "input_features" in inputs or _both(inputs)):
        masks.insert(0, inputs.get("decoder_attention_mask"))
        if isinstance(labels, torch.Tensor) and labels.shape == (batch, each) and masks[0] is None:
            masks[0] = torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1] != -100], dim=1)
    for mask in masks:
        if isinstance(mask, torch.Tensor) and mask.shape == (batch, each):
            keep = mask.detach().cpu().bool()
            return None if bool(keep.all()) else keep
    return None


def _both(inputs: Mapping[str, Any]) -> bool:
    return "decoder_input_ids" in inputs


def moe_blocks(model: torch.nn.Module) -> tuple[MoEBlock, ...]:
    """Find the MoE layers of a model, stock or spliced, in the order of their modules.

    A layer is a module with a child `experts` that holds stacked weights [E, ., .], and beside it a router: a module
    with a weight of E rows. So it stands in every class of transformers 5 and in moesaic's own.

    Raises:
        ObservationError: where there is none.
    """
    types = {record.model_type: record.score for record in records(SparseTarget).values()}
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    score: Score = types.get(str(getattr(text, "model_type", "")), "softmax")
    found = tuple(
        block
        for path, module in model.named_modules()
        if (block := _block(path, module, score if not _ours(module) else "softmax"))
    )
    if not found:
        raise ObservationError(
            f"{type(model).__name__}: a model that is observed must have MoE layers with stacked experts. None was "
            "found. Make them with `moesaic upcycle`, and load the model with transformers 5."
        )
    return found


def _ours(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "MoELayer"


def _block(path: str, module: torch.nn.Module, score: Score) -> MoEBlock | None:
    experts = dict(module.named_children()).get("experts")
    if experts is None:
        return None
    counts = {weight.shape[0] for weight in experts.parameters() if weight.ndim == 3}
    if not counts:
        return None
    num_experts = min(counts)
    for name, child in module.named_modules():
        own = dict(child.named_parameters(recurse=False))
        rows = tuple(own["weight"].shape) if "weight" in own else ()
        # Under expert parallelism the experts at hand are a part of those that the router knows.
        if not name.startswith("experts") and len(rows) == 2 and rows[0] > 1 and rows[0] % num_experts == 0:
            words = name.split(".")
            if words[0] in ("gate", "router"):
                return MoEBlock(path, child, experts, score)
    return None


class Observer:
    """Tells of every forward pass of a model, once it is done; remove it when it is no longer needed.

    Only what runs inside the model's own forward counts, so a layer that gradient checkpointing runs again during
    backward is told once. Checkpointing must not be of the reentrant kind, whose first run has no gradients.

    Args:
        model: stock or spliced, bare or under DistributedDataParallel, FSDP2 or PEFT; compiled or not.
        told: called with each pass; what it returns, if anything, takes the place of the model's output.
    """

    def __init__(self, model: torch.nn.Module, told: Callable[[Pass], Any]) -> None:
        self.model = inner(model)
        self.blocks = moe_blocks(self.model)
        self._told = told
        self._deliver = torch.compiler.disable(self._close)  # losses are no part of a compiled model
        self._open = False
        self._logits: list[tuple[int, torch.Tensor]] = []
        self._choices: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._inputs: dict[str, Any] = {}
        self._groups: torch.Tensor | None = None
        self._names = tuple(inspect.signature(self.model.forward).parameters)
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, with_kwargs=True),
        ]
        for index, block in enumerate(self.blocks):
            self._handles.append(block.router.register_forward_hook(self._router(index)))
            self._handles.append(block.experts.register_forward_pre_hook(self._experts(index), with_kwargs=True))

    def remove(self) -> None:
        """Stop observing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._open = True
        self._logits, self._choices = [], []
        self._groups = kwargs.get(GROUPS)
        kept = {name: value for name, value in kwargs.items() if name != GROUPS}
        self._inputs = {**dict(zip(self._names, args, strict=False)), **kept}
        return args, kept

    def _router(self, index: int) -> Callable[..., None]:
        def came(_module: Any, _args: Any, output: Any) -> None:
            if self._open:
                self._logits.append((index, output[0] if isinstance(output, tuple) else output))

        return came

    def _experts(self, index: int) -> Callable[..., None]:
        def goes(_module: Any, args: Any, kwargs: Any) -> None:
            if self._open:
                given = (*args, *kwargs.values())
                self._choices.append((index, given[1], given[2]))

        return goes

    def _end(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        return self._deliver(output)

    def _close(self, output: Any) -> Any:
        self._open = False
        seen = tuple(
            Seen(self.blocks[index], logits.flatten(0, -2), ids, weights)
            for (index, logits), (_, ids, weights) in zip(self._logits, self._choices, strict=True)
        )
        self._logits, self._choices = [], []
        return self._told(Pass(self.model, self._inputs, self._groups, seen, output))


def inner(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside DistributedDataParallel and `torch.compile`."""
    for name in ("_orig_mod", "module"):
        inside = dict(model.named_children()).get(name)
        if inside is not None and type(model).__name__ in ("OptimizedModule", "DistributedDataParallel"):
            return inner(inside)
    return model


class observe:  # noqa: N801  # read as a verb: `with observe(model) as passes:`
    """Collect the routings of every forward pass made inside the block.

    >>> import torch, transformers
    >>> config = transformers.MixtralConfig(
    ...     vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...     num_key_value_heads=2, num_local_experts=4,
    ... )
    >>> model = transformers.MixtralForCausalLM(config)
    >>> with observe(model) as passes:
    ...     out = model(input_ids=torch.ones(1, 3, dtype=torch.long))
    >>> [routing.probs_TE.shape for routing in passes[0]]
    [torch.Size([3, 4]), torch.Size([3, 4])]

    Args:
        model: as for `Observer`.

    Raises:
        ObservationError: where the model has no MoE layer.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._passes: list[tuple[Routing, ...]] = []

    def __enter__(self) -> list[tuple[Routing, ...]]:
        self._observer = Observer(self._model, self._keep)
        return self._passes

    def __exit__(self, *_: object) -> None:
        self._observer.remove()

    def __iter__(self) -> Iterator[tuple[Routing, ...]]:
        return iter(self._passes)

    def _keep(self, one: Pass) -> None:
        self._passes.append(one.routings)
