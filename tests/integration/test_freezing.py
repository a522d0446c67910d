"""Frozen parts stand still to the bit, without optimizer state, under any trainer; resumed runs are the same run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration import freezing_ranks as pico
from tests.integration.two_processes import two_processes
from torch.testing import assert_close
from transformers import MixtralForCausalLM, Trainer, TrainerCallback, TrainingArguments

from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.training import RouterObjective
from moesaic.training.freezing import Freezing
from moesaic.training.roles import parts
from moesaic.training.staged_freezing import StagedFreezing
from moesaic.training.stages import Stage, experts_only, router_only, two_stages

SAME: dict[str, float] = {"rtol": 0, "atol": 0}
"""Nothing is computed otherwise."""
ROUNDED = {"rtol": 0, "atol": 1e-8}
"""Float64 sums in another order: 2e-14 was seen. Norms compute in float32, where a digit may flip; updates are 1e-2."""


def frozen_names(stage: Stage) -> set[str]:
    """Return what a stage freezes whole."""
    return {part.name for part in parts(pico.make()) if stage.frozen.issuperset(part.roles)}


def check(found: pico.Run, stages: Sequence[Stage]) -> None:
    """Hold a run against its schedule; every boundary is after step 2 of 4."""
    names = set(found.weights[0])
    ever: set[str] = set()
    for step in range(pico.STEPS):
        stage = stages[0] if step < pico.STEPS // 2 else stages[-1]
        still = frozen_names(stage)
        before, after = found.weights[step], found.weights[step + 1]
        assert {name for name in names if torch.equal(before[name], after[name])} == still, step
        ever |= names - still
        assert found.state[step] == ever, step


@pytest.fixture(scope="module")
def alone() -> dict[str, pico.Run]:
    """One run of each schedule in a single process."""
    return {name: pico.run(pico.make(), stages) for name, stages in pico.SCHEDULES.items()}


@pytest.mark.parametrize("name", pico.SCHEDULES)
def test_frozen_parts_stand_still_without_state_and_all_else_moves(name: str, alone: dict[str, pico.Run]) -> None:
    check(alone[name], pico.SCHEDULES[name])


def test_accumulated_gradients_of_frozen_parts_stay_away(alone: dict[str, pico.Run]) -> None:
    found = pico.run(pico.make(), pico.SCHEDULES["two stages, placed at gate"], accumulate=4)
    check(found, pico.SCHEDULES["two stages, placed at gate"])
    assert_close(found.weights[-1], alone["two stages, placed at gate"].weights[-1], **ROUNDED)


def test_one_half_of_a_tensor_stands_still(alone: dict[str, pico.Run]) -> None:
    found = alone["two stages, placed at gate"]
    for name in (name for name in found.weights[0] if name.endswith("gate_up_proj")):
        gates, ups = zip(*(weights[name].chunk(2, 1) for weights in found.weights), strict=True)
        assert [torch.equal(ups[0], up) for up in ups] == [True, True, True, False, False]
        assert all(not torch.equal(gate, following) for gate, following in pairwise(gates))


def test_a_half_that_trained_keeps_its_state() -> None:
    model = pico.make()
    stages = (Stage(0.5), Stage(1.0, frozenset({"up"})))
    weight = model.model.layers[0].mlp.experts.gate_up_proj
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    freezing, kept = Freezing(model, stages, 4), []
    ids = torch.arange(3, 21).reshape(2, 9)
    for step in range(4):
        freezing.at(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append([optimizer.state[weight][key].chunk(2, 1)[1].clone() for key in ("exp_avg", "exp_avg_sq")])
    assert not torch.equal(kept[0][0], kept[1][0])
    assert_close(kept[3], kept[1], **SAME)


def test_what_trained_before_keeps_its_state(alone: dict[str, pico.Run]) -> None:
    """Adam with weight decay moves whatever has a gradient, zeros included."""
    steps = alone["experts stop"].steps
    assert {name: count for name, count in steps.items() if "experts" in name and count != 2} == {}
    assert {count for name, count in steps.items() if "experts" not in name} == {4}


def test_backward_skips_frozen_weights() -> None:
    model = pico.make()
    freezing = Freezing(model, two_stages(0.5), 4)
    ids = torch.arange(3, 21).reshape(2, 9)
    for step, count in ((0, 2), (1, 2), (2, 0)):
        freezing.at(step)
        freezing.at(step)
        model(input_ids=ids, labels=ids).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in range(count)}
    freezing.at(0)  # gradients of before are gone, too
    assert model.model.layers[0].mlp.experts.gate_up_proj.grad is None
    freezing.remove()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_clipping_counts_no_frozen_gradient(alone: dict[str, pico.Run]) -> None:
    model = pico.make()
    drawn = torch.randint(3, 48, (8, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=drawn, labels=drawn).loss.backward()
    for name, stages in pico.SCHEDULES.items():
        squares = 0.0
        for part in parts(model):
            grad = part.parameter.grad
            assert grad is not None
            if not stages[0].frozen.issuperset(part.roles):
                half = part.roles == ("gate", "up") and "up" in stages[0].frozen
                squares += float((grad.chunk(2, 1)[0] if half else grad).square().sum())
        assert_close(alone[name].norms[0], squares**0.5, rtol=1e-12, atol=0)  # another order of a float64 sum


@pytest.mark.parametrize("stages", [router_only(), experts_only(), two_stages(0.5)])
@pytest.mark.parametrize("dropping", [False, True])
def test_router_losses_pass_frozen_routers_by(
    stages: Sequence[Stage], dropping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pico.make().train()
    objective = RouterObjective([LoadBalancing(), RouterZ()]).attach(model)
    freezing = Freezing(model, stages, 4)
    freezing._wrapped = dropping  # what it does where a process group exists
    freezing.at(0)
    ids = torch.arange(3, 21).reshape(2, 9)
    model(input_ids=ids, labels=ids).loss.backward()
    with_grad = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_grad == {name for name, _ in model.named_parameters()} - frozen_names(stages[0])
    assert objective.log()


class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 48, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Watch(TrainerCallback):
    """Keeps weights and names with optimizer state after every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, torch.Tensor], set[str]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        names = dict(kwargs["model"].named_parameters())
        self.steps.append((pico.whole(names), {n for n, p in names.items() if p in kwargs["optimizer"].state}))


def trained(
    folder: Path, stages: Sequence[Stage], resume: Path | None = None
) -> tuple[torch.nn.Module, Watch, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    # Trainer loads by names in memory and only warns of experts, whose names on disk are others: load them before.
    model = MixtralForCausalLM.from_pretrained(resume) if resume else pico.make(torch.float32)
    model.set_experts_implementation("eager")
    start = pico.whole(dict(model.named_parameters()))
    watch = Watch()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=10, per_device_train_batch_size=2, learning_rate=1e-2, weight_decay=0.1,
        gradient_accumulation_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=100,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Data(), callbacks=[StagedFreezing(stages), watch])
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return model, watch, start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, trained(folder, two_stages(0.35))


def test_two_stages_under_trainer(undisturbed: tuple[Path, Any]) -> None:
    """0.35 of 10 steps is 3.5, rounded 4."""
    _, (model, watch, start) = undisturbed
    held = {name for name in start if name.endswith("gate_up_proj")}
    assert len(held) == 2
    for step, (weights, state) in enumerate(watch.steps):
        moved = {name for name in start if not torch.equal(weights[name], start[name])}
        assert moved == (set(start) - held if step < 4 else set(start))
        assert state == moved
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("step", [2, 4, 6])
def test_resumes_to_the_bit(step: int, undisturbed: tuple[Path, Any], tmp_path: Path) -> None:
    """From a checkpoint in the first stage, at the boundary, and in the second."""
    folder, (model, _, _) = undisturbed
    resumed, watch, _ = trained(tmp_path, two_stages(0.35), folder / f"checkpoint-{step}")
    assert len(watch.steps) == 10 - step
    assert_close(dict(resumed.named_parameters()), dict(model.named_parameters()), **SAME)


def test_a_model_trained_again_starts_at_the_first_stage(tmp_path: Path) -> None:
    model = pico.make(torch.float32)
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    seen = []

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(model.model.layers[0].mlp.experts.gate_up_proj.requires_grad)
            if len(seen) == 1:
                raise KeyboardInterrupt

    trainer = Trainer(model, arguments, train_dataset=Data(), callbacks=[StagedFreezing(two_stages(0.5)), Stop()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert seen == [False, False, True]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all schedules in two processes, by DistributedDataParallel and by FSDP2."""
    folder = tmp_path_factory.mktemp("shared")
    pico.make().save_pretrained(folder / "model")
    two_processes("freezing_ranks", folder, "ddp,fsdp2")
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(kind: str, shared: Path, alone: dict[str, pico.Run]) -> None:
    for name, saved in torch.load(shared / f"{kind}.pt", weights_only=True).items():
        two, one = pico.Run(**saved), alone[name]
        check(two, pico.SCHEDULES[name])
        assert two.steps == one.steps
        assert_close(two.norms, one.norms, **ROUNDED)
        assert_close(two.weights, one.weights, **ROUNDED)
