"""How far a model is from its dense parent, and how well it does on what it never trains on, again and again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from moesaic.calibration import open_data, open_readers
from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.observing import GROUPS, inner
from moesaic.texts import builtin
from moesaic.training.moving import on
from moesaic.training.recipe import Prepared
from moesaic.training.targets import labelled

COMPARED = 512
"""Tokens on which the parent is compared, at most."""
HELD = 1 << 26
"""Of the parent's values that are held: 268 MB."""
OUTPUTS = ("logits", "logits_per_image", "last_hidden_state", "image_embeds", "text_embeds")
"""Outputs that can be compared, the first that both models have; KL of logits, else the distance of cosines."""
FAULTS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
Batch = Mapping[str, Any]


@dataclass
class Curve:
    """Fixed batches, and what the parent made of the first of them.

    Args:
        batches: arguments of the model's forward, labels among them.
        parents: the parent's output of each compared batch, float32 [N, C], real positions only. name: of that output.
    """

    batches: tuple[Batch, ...]
    parents: list[torch.Tensor] = field(default_factory=list)
    name: str = ""

    @classmethod
    def of(cls, prepared: Prepared, folder: Path, batch_size: int, tokens: int) -> Curve:
        """Take held-out examples; where the task has none, built-in passages for a model of text.

        Args:
            folder: of the model, for its tokenizer. tokens: of the batches, about.
        """
        if prepared.held_out is not None and len(prepared.held_out):
            return cls(tuple(_held_out(prepared, batch_size, tokens)))
        return cls(tuple(_passages(prepared.model, folder)))

    def compare_with(self, parent: torch.nn.Module) -> str:
        """Run the parent; return why it can't be compared, or an empty string."""
        try:
            with evaluating(parent):
                outputs = self._outputs(parent)
        except FAULTS as error:
            return f"the dense parent does not run on the held-out batches: {type(error).__name__}: {error}"
        if not self.name:
            return f"the dense parent's output has none of {', '.join(OUTPUTS)}"
        self.parents = outputs
        return ""

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Return `eval/loss` (nats, mean over labels), and `eval/kl` (nats) or `eval/cosine_distance` to the parent."""
        is_kl = self.name.startswith("logits")
        total, count = 0.0, 0
        apart: list[torch.Tensor] = []
        with evaluating(model):
            for number, batch in enumerate(self.batches):
                output, size = _run(model, batch), _labels(model, batch)
                if size:  # a mean over no labels is no number
                    total, count = total + float(output["loss"]) * size, count + size
                parent_NC = self.parents[number] if number < len(self.parents) else None
                if parent_NC is not None and isinstance(output.get(self.name), torch.Tensor):
                    own_NC = _real(output[self.name].float(), batch, model)[: len(parent_NC)]
                    if own_NC.shape == parent_NC.shape:  # else the task gave the model another head
                        apart.append((_kl if is_kl else _distance)(parent_NC, own_NC))
        found = {"eval/loss": total / count} if count else {}
        if apart:
            found["eval/kl" if is_kl else "eval/cosine_distance"] = float(torch.cat(apart).mean())
        return found

    def _outputs(self, model: torch.nn.Module) -> list[torch.Tensor]:
        """Return the parent's output of each batch, as many as may be held; the first batch decides which output."""
        found: list[torch.Tensor] = []
        room = HELD
        tokens = COMPARED
        for batch in self.batches:
            output = _run(model, batch)
            if not self.name:
                self.name = next((name for name in OUTPUTS if isinstance(output.get(name), torch.Tensor)), "")
            if not isinstance(output.get(self.name), torch.Tensor):
                return []
            rows_NC = _real(output[self.name].float(), batch, model)
            kept_NC = rows_NC[: min(tokens, room // rows_NC.shape[-1])]
            found.append(kept_NC.clone())
            tokens, room = tokens - len(kept_NC), room - kept_NC.numel()
            if tokens <= 0 or room < rows_NC.shape[-1]:
                break
        return found


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Run without gradients and dropout, and leave mode and random numbers as they were."""
    was = model.training
    model.eval()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        model.train(was)


def _run(model: torch.nn.Module, batch: Batch) -> Any:
    bare = inner(model)
    device = next(bare.parameters()).device
    names = inspect.signature(bare.forward).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in names.values())
    kept = {name: value for name, value in batch.items() if name != GROUPS and (takes_all or name in names)}
    with _in_its_own_precision(bare):
        return bare(**on(device, kept), return_dict=True)


@contextmanager
def _in_its_own_precision(bare: torch.nn.Module) -> Iterator[None]:
    """Take off the autocast that accelerate puts around a forward.

    The parent computes in float32, and an upcycled model is nearer to it than bfloat16 is.
    """
    own = vars(bare)
    around, within = own.get("forward"), own.get("_original_forward")
    if around is None or within is None:
        yield
        return
    own["forward"] = within
    try:
        yield
    finally:
        own["forward"] = around


def _labels(model: torch.nn.Module, batch: Batch) -> int:
    """Return how many labels the loss of a batch is a mean over."""
    keep, labels = labelled(inner(model), batch), batch.get("labels")
    if keep is not None:
        return int(keep.sum())
    return int((labels != -100).sum()) if isinstance(labels, torch.Tensor) else 1


def _held_out(prepared: Prepared, batch_size: int, tokens: int) -> Iterator[Batch]:
    assert prepared.held_out is not None
    done = 0
    for start in range(0, len(prepared.held_out), batch_size):
        stop = min(start + batch_size, len(prepared.held_out))
        batch = prepared.collate([prepared.held_out[index] for index in range(start, stop)])
        yield batch
        done += prepared.tokens(batch)
        if done >= tokens:
            return


def _passages(model: Any, folder: Path) -> Iterator[Batch]:
    """Yield passages one by one, for decoders that predict the next token."""
    if model.main_input_name != "input_ids" or model.config.is_encoder_decoder or not model.can_generate():
        return
    try:
        reader = open_readers(folder, model, 256)["text"]
        items = open_data([text for _, text in builtin()]).visit(seed=0)
        examples = [example for item in items for example in islice(reader.examples(item), 1)]
    except (CalibrationError, KeyError):
        return
    for example in examples[:4]:
        inputs = reader.feed([example]).inputs
        yield {**inputs, "labels": inputs["input_ids"]}


def _real(output: torch.Tensor, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
    """Return the rows [N, C] at positions that count: whose label counts, else that are no padding."""
    rows_NC = output.reshape(-1, output.shape[-1])
    known = (labelled(inner(model), batch), batch.get("attention_mask"))
    keep = next((one for one in known if isinstance(one, torch.Tensor) and one.shape == output.shape[:-1]), None)
    return rows_NC if keep is None else rows_NC[keep.bool().flatten().to(rows_NC.device)]


def _kl(parent_NC: torch.Tensor, own_NC: torch.Tensor) -> torch.Tensor:
    log_p, log_q = parent_NC.double().log_softmax(-1), own_NC.double().log_softmax(-1)
    kl_N: torch.Tensor = torch.linalg.vecdot(log_p.exp(), log_p - log_q)
    return kl_N


def _distance(parent_NC: torch.Tensor, own_NC: torch.Tensor) -> torch.Tensor:
    return 1 - torch.cosine_similarity(parent_NC.double(), own_NC.double(), dim=-1, eps=1e-300)


def load_parent(folder: Path, device: torch.device) -> torch.nn.Module:
    """Load the dense parent in float32."""
    from moesaic.modeling.loading import load  # noqa: PLC0415  # imports transformers

    model = load(folder, dtype=torch.float32)
    model.to(device)  # type: ignore[arg-type]
    return model
