"""The model of a task: loaded for training, checked to fit, and what stands beside its weights."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.calibration.data import Kind
from moesaic.calibration.readers import Reader, open_readers
from moesaic.checkpoints.side_files import side_files
from moesaic.errors import CalibrationError, TrainingError
from moesaic.lazy import torch
from moesaic.modeling.sections import SECTION, code_files
from moesaic.observing import GROUPS
from moesaic.training.tasks.counting import count_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers, in configs, that are masked between documents."""
UNSEEN = -100
"""The label of a token that is not to be predicted."""


def open_model(folder: Path) -> PreTrainedModel:
    """Load a model in float32, stock or spliced."""
    from moesaic.modeling.loading import load  # noqa: PLC0415  # imports transformers

    model = load(folder, dtype=torch.float32)
    count_labels(model)
    return model


def demand(model: PreTrainedModel, fits: bool, task: str, rule: str, otherwise: str) -> None:  # a check
    """Refuse a model whose class does not fit a task.

    Raises:
        TrainingError: naming the class, what it must do, and what to do instead.
    """
    if not fits:
        raise TrainingError(f"{task}: the model must {rule}. Got {type(model).__name__}. {otherwise}.")


def takes(model: PreTrainedModel, *names: str) -> bool:
    """Return whether a model's forward has all these arguments."""
    return set(names) <= set(inspect.signature(model.forward).parameters)


def separates_documents(model: PreTrainedModel) -> bool:
    """Return whether positions that begin anew with each document in a row keep these apart in a decoder.

    Recurrent and convolutional layers go on from one document to the next; so may layers of a kind not known here.
    Of attention nothing tells which models look at positions, so it is tried: what stands first must change nothing.
    Where processes share a model, all try it at once.
    """
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415  # needs torch

    config = model.config
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    if not (takes(model, "position_ids") and config.get_text_config() is config and set(kinds) <= ATTENTION):
        return False
    ids_BT = torch.tensor([[1, 2, 3, 4], [4, 3, 3, 4]], device=model.device)
    positions_BT = torch.tensor([[0, 1, 0, 1]] * 2, device=model.device)
    trains = model.training
    with torch.no_grad():
        one_TV, other_TV = model.eval()(ids_BT, position_ids=positions_BT, use_cache=False).logits[:, 2:]
    model.train(trains)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # else the optimizer would be made of the whole weights, which are given up
    return torch.allclose(one_TV, other_TV, rtol=0.0, atol=1e-5 * float(one_TV.abs().max()))


def generates_text(model: PreTrainedModel) -> bool:
    """Return whether a model is a decoder that predicts the next token of a text."""
    return model.can_generate() and takes(model, "input_ids", "labels") and not model.config.is_encoder_decoder


def readers_of(folder: Path, model: PreTrainedModel, window: int, *kinds: Kind) -> dict[Kind, Any]:
    """Return a model's readers of these kinds.

    Raises:
        TrainingError: where its folder has no processor for one of them.
    """
    with as_training():
        found: Mapping[Kind, Reader] = open_readers(folder, model, window)
    missing = [kind for kind in kinds if kind not in found]
    if missing:
        raise TrainingError(
            f"{folder}: the model must have a processor for {' and '.join(kinds)}. Got none for {missing[0]}. "
            "Copy it from the original model."
        )
    return {kind: found[kind] for kind in kinds}


def check_window(window: int, task: str) -> None:
    """Refuse a window in which there is nothing to predict.

    Raises:
        ValueError: where it holds fewer than two tokens.
    """
    if window < 2:
        raise ValueError(
            f"{task}: window must be 2 tokens or more, since the first is not predicted. Got {window}. "
            "Give a larger one."
        )


@contextmanager
def as_training() -> Iterator[None]:
    """Let what reading data finds fault with stop a training run."""
    try:
        yield
    except CalibrationError as error:
        raise TrainingError(str(error)) from error


def saver(folder: Path, model: PreTrainedModel) -> Callable[[Path], None]:
    """Return what writes tokenizer, processors and, for a spliced model, its code into a folder."""
    files = {name: folder / name for name in side_files(folder)}
    if SECTION in model.config.to_dict():
        files |= {path.name: path for path in code_files()}

    def save(to: Path) -> None:
        for name, file in files.items():
            if file.resolve() != (to / name).resolve():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to / name)

    return save


def real_tokens(batch: Mapping[str, Any]) -> int:
    """Return how many tokens of a text batch are no padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def padded_rows(rows: Sequence[Any], fill: int, *, at_least: int = 0) -> torch.Tensor:
    """Return whole numbers [B, T], filled up on the right to the longest row, or to so many."""
    found_BT = torch.full((len(rows), max(at_least, *map(len, rows))), fill)
    for place, row in enumerate(rows):
        found_BT[place, : len(row)] = torch.as_tensor(row)
    return found_BT


def real_BT(rows: Sequence[Any]) -> torch.Tensor:
    """Return the attention mask [B, T] of rows that are filled up on the right."""
    lengths_B = torch.tensor([len(row) for row in rows])
    return (torch.arange(int(lengths_B.max())) < lengths_B[:, None]).long()


def with_groups(batch: dict[str, Any], groups: Sequence[int], *, known: bool) -> dict[str, Any]:
    """Return a batch with the group of each row, -1 for none, where the data know any: not this batch alone."""
    return {**batch, GROUPS: torch.tensor(groups)} if known else batch
