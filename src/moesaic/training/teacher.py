"""Expert-ensemble self-distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.losses.eesd import Eesd, cosine, kl, mean_square
from moesaic.observing import MoEBlock, Pass, Seen, inner, moe_blocks
from moesaic.saving import write_tensors
from moesaic.training.averaging import Average
from moesaic.training.dense_routing import route_to_all
from moesaic.training.steps import AfterStep
from moesaic.training.targets import Watch, entropy, entropy_of, features, logits, weights

NOT_FOR_TEACHERS = ("num_items_in_batch", "return_dict", "past_key_values")


class EnsembleTeacher:
    """An average of the student over its steps, with all experts of every token, as a part of a `RouterObjective`.

    It is copied from the student at the first pass and moves after each optimizer step, whatever the number of
    micro-batches or optimizers: at the next pass, or when its state is asked for. With several processes each has its
    own, and all are equal. Its terms are means over the labelled outputs of a pass, as is the model's own loss, or over
    its sequences where tokens have no labels.

    Args:
        method: what is compared, and how.
    """

    def __init__(self, method: Eesd | None = None) -> None:
        self.method = method or Eesd()
        self._student: torch.nn.Module | None = None
        self._average: Average | None = None
        self._restored: Mapping[str, torch.Tensor] | None = None
        self._stepped = False
        self._watches: list[Watch] = []
        self._after_step: AfterStep | None = None

    @property
    def model(self) -> torch.nn.Module:
        """The teacher, in eval mode, all its routers choosing all experts."""
        return self._now().model

    @property
    def steps(self) -> int:
        """How many steps of the student it has averaged."""
        return self._now().steps

    def attach(self, model: torch.nn.Module) -> None:
        """Begin to follow a model; `RouterObjective.attach` calls it.

        Raises:
            ObjectiveError: where it follows one already.
        """
        if self._student is not None:
            raise ObjectiveError("teacher: it must follow one model. Got a second. Detach it first.")
        self._student = inner(model)
        both = [self._student] + ([] if self._average is None else [self._average.model])
        self._watches = [Watch(each, self._watched(moe_blocks(each))) for each in both]
        self._after_step = AfterStep(self._student, self._step)

    def detach(self) -> None:
        """Follow no more; the average stays as it is, for `save`."""
        if self._average is not None:
            self._now()
        for watch in self._watches:
            watch.remove()
        if self._after_step is not None:
            self._after_step.remove()
        self._watches, self._student, self._after_step = [], None, None

    def terms(self, one: Pass) -> Mapping[str, torch.Tensor]:
        """Return the weighted terms of a pass of the student.

        Raises:
            ObjectiveError: where the student can't be copied, or its outputs have nothing to compare.
        """
        average = self._built(one.model)
        (own, own_base), (seen, seen_base) = self._watches[0].take(), self._asked(average.model, one)
        found = {"router/eesd": self.method.weight * self._compared(one, own_base, *seen_base)}
        if self.method.layer_weight:
            each = [
                mean_square(mine, theirs, self._layer_weights(one, layer))
                for mine, theirs, layer in zip(own, seen, one.seen, strict=True)
            ]
            found["router/eesd_layers"] = self.method.layer_weight * torch.stack(each).mean()
        return found

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors to resume from, averaged weights and buffers by their names in the model; not copies."""
        if self._average is None and self._restored is not None:
            return dict(self._restored)
        return self._now().state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state, at once or, before the first pass, as soon as there is a student to copy.

        Raises:
            ObjectiveError: where the state is of another model.
        """
        self._stepped = False
        if self._average is None:
            self._restored = dict(state)
        else:
            self._average.load_state_dict(state)

    def save(self, path: Path) -> None:
        """Write the state to a safetensors file; what stands there is kept until the new file is whole."""
        beside = path.with_name(path.name + ".part")
        write_tensors(beside, self.state_dict())
        beside.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a file that `save` wrote.

        Raises:
            ObjectiveError: where it is no safetensors file, or of another model.
        """
        from safetensors import SafetensorError  # noqa: PLC0415  # needs torch
        from safetensors.torch import load_file  # noqa: PLC0415

        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ObjectiveError(
                f"teacher: its state must be a safetensors file. Got {error} in {path}. Resume from an older "
                "checkpoint."
            ) from error
        self.load_state_dict(state)

    def _step(self) -> None:
        self._stepped = self._average is not None

    def _now(self) -> Average:
        """Return the average, with the last step in it."""
        if self._average is None:
            raise ObjectiveError("teacher: it must have seen a pass of its student. Train at least one step first.")
        if self._stepped and self._student is not None:
            self._average.update(self._student)
            self._stepped = False
        return self._average

    def _built(self, student: torch.nn.Module) -> Average:
        if self._student is None:
            raise ObjectiveError("teacher: it must follow a model. Give it to a RouterObjective and attach that.")
        if self._average is None:
            average = Average(student, self.method.decay)
            blocks = route_to_all(average.model)
            for block in blocks:
                block.experts.register_forward_pre_hook(_checks_all(block), with_kwargs=True)
            self._watches.append(Watch(average.model, self._watched(blocks)))
            config: Any = average.model.config
            config.return_dict = True
            if self._restored is not None:
                average.load_state_dict(self._restored)
            self._average, self._restored = average, None
        return self._now()

    def _watched(self, blocks: tuple[MoEBlock, ...]) -> list[torch.nn.Module]:
        return [block.experts for block in blocks] if self.method.layer_weight else []

    @torch.no_grad()
    def _asked(self, teacher: torch.nn.Module, one: Pass) -> tuple[list[torch.Tensor], tuple[Any, Any]]:
        """Run the teacher on what the student was given, and leave the random state as it was."""
        given = {name: value for name, value in one.inputs.items() if name not in NOT_FOR_TEACHERS}
        if not _reads_labels(one):
            given = {name: value for name, value in given.items() if name not in ("labels", "shift_labels")}
        devices = {tensor.device.index for tensor in teacher.parameters() if tensor.is_cuda}
        with torch.random.fork_rng(devices=sorted(devices)):  # some models draw in eval mode, too
            output = teacher(**given)
        routed, base = self._watches[1].take()
        return routed, (output, base)

    def _compared(self, one: Pass, own_base: Any, output: Any, base: Any) -> torch.Tensor:
        """Return the unweighted term at the level of the model."""
        labelled = one.inputs.get("labels") is not None
        mine = logits(one.output, labelled=labelled)
        if self.method.match == "kl" or (self.method.match == "auto" and mine is not None and mine.ndim == 3):
            theirs = logits(output, labelled=labelled)
            if mine is None or theirs is None:
                raise _nothing(one, "logits", "match='cosine'")
            weight_N = self._weights(one, mine)
            return kl(mine.flatten(0, -2), theirs.flatten(0, -2), weight_N, self.method.temperature)
        ours, others = features(one.output, own_base), features(output, base)
        if not ours or len(ours) != len(others):
            raise _nothing(one, "final features (embeddings, last_hidden_state)", "match='kl'")
        each = [
            cosine(mine.flatten(0, -2), theirs.flatten(0, -2), self._weights(one, mine))
            for mine, theirs in zip(ours, others, strict=True)
        ]
        return torch.stack(each).mean()

    def _weights(self, one: Pass, mine: torch.Tensor) -> torch.Tensor:
        """Return what each of the compared outputs counts."""
        batch, length = (len(mine), 1) if mine.ndim == 2 else mine.shape[:2]
        weight_N = weights(one, batch, length, mine.device)
        return weight_N * entropy(one, batch, length) if self.method.weighting == "entropy" else weight_N

    def _layer_weights(self, one: Pass, seen: Seen) -> torch.Tensor:
        weight_N = weights(one, seen.batch, seen.length, seen.logits_NE.device, seen.block.path)
        return weight_N * entropy_of(seen) if self.method.weighting == "entropy" else weight_N


def _nothing(one: Pass, what: str, instead: str) -> ObjectiveError:
    names = ", ".join(one.output) if isinstance(one.output, Mapping) else f"a {type(one.output).__name__}"
    return ObjectiveError(
        f"{type(one.model).__name__}: the output of a student must have {what} that a teacher's can be compared "
        f"with. Got {names}. Choose {instead}, or let the model return them, with return_dict=True."
    )


def _reads_labels(one: Pass) -> bool:
    """Whether the model makes the decoder's input from the labels; otherwise labels only cost the teacher a loss."""
    given = any(one.inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    config: Any = getattr(one.model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and not given


def _checks_all(block: MoEBlock) -> Any:
    num_experts = len(block.router_weight)

    def came(_module: Any, args: Any, kwargs: Any) -> None:
        ids_TK = (*args, *kwargs.values())[1]
        if ids_TK.shape[-1] != num_experts:
            raise ObjectiveError(
                f"{block.path}: a teacher's router must choose all {num_experts} experts. Got {ids_TK.shape[-1]}. "
                "Distil in a class that moesaic converts to."
            )

    return came
