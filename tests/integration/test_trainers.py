"""Every trainer trains what a plain loop on the whole batch does: the same weights, router losses included."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import peft
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from datasets import Dataset
from PIL import Image
from tests.integration import spliceable
from tests.integration.training_picos import (
    ARGUMENTS,
    BATCH,
    RATE,
    STEPS,
    collate,
    examples,
    mixtral,
    objective,
    plain,
    weights,
)
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

import moesaic
from moesaic.calibration.ranks import Ranks
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, convert
from moesaic.errors import ObjectiveError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.losses.base import RouterLoss
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.method import number
from moesaic.observing import GROUPS
from moesaic.routers.normal import Normal
from moesaic.routing import Routing
from moesaic.spec import MoESpec
from moesaic.training.health import Health, LayerHealth
from moesaic.training.heat_maps import LOAD_MAP, HeatMaps, load_map
from moesaic.training.objective import RouterObjective
from moesaic.training.trainers import RouterCallback, install

EXACT: dict[str, float] = {"rtol": 0, "atol": 1e-12}
"""float64: the order of sums."""
FLOAT32: dict[str, float] = {"rtol": 0, "atol": 2e-6}
"""float32 weights about 1 in size, after two steps that move them by about 0.1."""
TERMS = {f"router/{loss}/model.layers.{layer}.mlp" for loss in ("load_balancing", "router_z") for layer in (0, 1)}


def trainer(model: Any, out: Path, rows: Any = None, accumulate: int = 1, **changes: Any) -> Trainer:
    made = {name: changes.pop(name) for name in ("compute_loss_func", "callbacks", "eval_dataset") if name in changes}
    settings = {
        **ARGUMENTS,
        "output_dir": str(out),
        "per_device_train_batch_size": BATCH // accumulate,
        "gradient_accumulation_steps": accumulate,
    }
    arguments = TrainingArguments(**{**settings, **changes})
    return Trainer(model, arguments, train_dataset=rows or examples(), data_collator=collate, **made)


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str = "gate.weight") -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one if name in key)


def test_the_losses_are_seen_in_the_weights() -> None:
    """So that every comparison below can fail."""
    bare, want = plain(mixtral(), examples(), None), plain(mixtral(), examples(), objective())
    assert differ(bare, want) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 4])
def test_trainer(accumulate: int, tmp_path: Path) -> None:
    want = plain(mixtral(), examples(), objective())
    host = trainer(mixtral(), tmp_path, accumulate=accumulate)
    install(host, objective())
    host.train()
    assert_close(weights(host.model), want, **EXACT)
    logged = [row for row in host.state.log_history if "loss" in row]
    assert len(logged) == STEPS
    for row in logged:
        assert set(row) >= TERMS


def test_a_trainer_needs_no_more_than_attach(tmp_path: Path) -> None:
    """Whoever accumulates without `install` has a loss for each micro-batch: near, not equal."""
    want, bare = plain(mixtral(), examples(), objective()), plain(mixtral(), examples(), None)
    for accumulate, model in ((1, mixtral()), (4, mixtral())):
        losses = objective().attach(model)
        host = trainer(model, tmp_path, accumulate=accumulate, callbacks=[RouterCallback(losses)])
        host.train()
        if accumulate == 1:
            assert_close(weights(model), want, **EXACT)
        assert differ(weights(model), want) < 0.5 * differ(bare, want)
        assert set(host.state.log_history[0]) >= TERMS


def test_trackers_get_the_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415  # seconds

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    host = trainer(mixtral(), tmp_path, report_to=["tensorboard"])
    install(host, objective())
    host.train()
    (file,) = tmp_path.rglob("events.out*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert {f"train/{term}" for term in TERMS} <= set(events.Tags()["scalars"])
    assert len(events.Scalars(f"train/{min(TERMS)}")) == STEPS


def test_heat_maps_under_any_trainer(tmp_path: Path) -> None:
    """Health as a part of the objective, read by the callback: pictures of it, and its figures in the log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415  # seconds
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    health, seen = Health(), []

    def read() -> dict[str, LayerHealth]:
        seen.append(health.read(Ranks()))
        return seen[-1]

    host = trainer(mixtral(), tmp_path, callbacks=[HeatMaps(SummaryWriter(str(tmp_path / "tb")), read, every=2)])
    install(host, RouterObjective([LoadBalancing()], parts=[health]))
    host.train()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    images = events.Images(LOAD_MAP)
    rows = [row for row in host.state.log_history if "loss" in row]
    assert len(seen) == len(rows) == STEPS
    assert [one.step for one in images] == sorted({*range(1, STEPS + 1, 2), STEPS})
    for image in images:
        now = seen[image.step - 1]
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(pixels, load_map([one.load for one in now.values()]))
    for layer, one in seen[-1].items():
        assert rows[-1][f"router/health/entropy/{layer}"] == one.entropy
        assert sum(one.load) == pytest.approx(1, abs=1e-12)  # float64 shares of a few


def test_evaluation_between_steps_changes_nothing(tmp_path: Path) -> None:
    want = plain(mixtral(), examples(), objective())
    host = trainer(mixtral(), tmp_path, accumulate=2, eval_strategy="steps", eval_steps=1, eval_dataset=examples()[:2])
    install(host, objective())
    host.train()
    assert_close(weights(host.model), want, **EXACT)
    bare = mixtral()
    bare.load_state_dict(host.model.state_dict())
    with torch.no_grad():
        loss = float(bare.eval()(**collate(examples()[:2])).loss)
    found = [row["eval_loss"] for row in host.state.log_history if "eval_loss" in row]
    assert found[-1] == pytest.approx(loss, abs=1e-6)  # without the objective's terms; the trainer gathers in float32


def smoothed(output: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """Return a loss of the trainer's own: the mean over all tokens, labelled or not, in each micro-batch's share."""
    return cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().clamp_min(0))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_of_the_trainers_own(accumulate: int, tmp_path: Path) -> None:
    """The terms are added to it, once and whole."""
    model, losses = mixtral().train(), objective()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses.attach(model)
    for start in range(0, len(examples()), BATCH):
        batch = collate(examples()[start : start + BATCH])
        labels = batch.pop("labels")
        (smoothed(model(**batch), labels) + losses.pending()).backward()
        optimizer.step()
        optimizer.zero_grad()
    host = trainer(
        mixtral(), tmp_path, accumulate=accumulate, average_tokens_across_devices=False,
        compute_loss_func=lambda output, labels, **_: smoothed(output, labels) / accumulate,
    )  # fmt: skip
    install(host, objective())
    host.train()
    assert_close(weights(host.model), weights(model), **EXACT)


@pytest.mark.parametrize(
    "changes", [{"label_smoothing_factor": 0.1}, {"compute_loss_func": smoothed}], ids=["smoothing", "loss function"]
)
def test_a_trainer_that_passes_the_models_loss_by_is_told_so(changes: dict[str, Any], tmp_path: Path) -> None:
    model = mixtral()
    objective().attach(model)
    with pytest.raises(ObjectiveError, match=r"must be trained on.*install\(trainer, objective\)"):
        trainer(model, tmp_path, **changes).train()


def test_label_smoothing(tmp_path: Path) -> None:
    """With `install` it is the same for any split into micro-batches, and the terms are in it."""
    found = []
    for accumulate, with_terms in ((1, True), (4, True), (1, False)):
        host = trainer(mixtral(), tmp_path, examples("equally"), accumulate, label_smoothing_factor=0.1)
        if with_terms:
            install(host, objective())
        host.train()
        found.append(weights(host.model))
    assert_close(found[1], found[0], **EXACT)
    assert differ(found[0], found[2]) > 1e-3


@dataclass(frozen=True)
class Probe(RouterLoss):
    """Remembers the groups of the tokens it was given.

    Reference: none.
    """

    seen: ClassVar[list[Any]] = []
    weight: float = number(1.0, low=0.0, high=1.0)

    def loss(self, routing: Routing) -> torch.Tensor:
        self.seen.append(routing.group_T)
        return routing.logits_TE.square().mean()


def test_groups_of_a_data_set_reach_the_losses(tmp_path: Path) -> None:
    rows = [{**row, GROUPS: torch.tensor(place % 3)} for place, row in enumerate(examples("equally"))]
    Probe.seen.clear()
    host = trainer(mixtral(), tmp_path, Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in rows]))
    install(host, RouterObjective([Probe()]))
    host.train()
    assert_close(Probe.seen[0], (torch.arange(BATCH) % 3).repeat_interleave(6))


@pytest.fixture
def whisper(tmp_path: Path) -> Callable[[], Any]:
    """Return a maker of a spliced Whisper whose experts differ."""
    spliceable.save(spliceable.make("whisper"), tmp_path / "dense")
    chosen = Options(MoESpec(4, 2), SparseUpcycling(), Normal(std=0.5), target="splice")
    convert(DenseCheckpoint.open(tmp_path / "dense"), tmp_path / "moe", chosen)
    return lambda: spliceable.randomised(moesaic.load(tmp_path / "moe"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_seq2seq_trainer(accumulate: int, whisper: Callable[[], Any], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(5)
    rows = [
        {
            "input_features": torch.randn(8, 40, generator=random, dtype=torch.float64),
            "labels": torch.randint(3, 60, (5,), generator=random),
        }
        for _ in range(STEPS * BATCH)
    ]
    want, bare = plain(whisper(), rows, objective(), 0.01), plain(whisper(), rows, None, 0.01)
    settings = {**ARGUMENTS, "learning_rate": 0.01, "gradient_accumulation_steps": accumulate}
    settings["per_device_train_batch_size"] = BATCH // accumulate
    arguments = Seq2SeqTrainingArguments(output_dir=str(tmp_path), **settings)
    host = Seq2SeqTrainer(whisper(), arguments, train_dataset=rows, data_collator=collate)
    host.loss_is_scaled_for_ga = False  # Whisper's loss is a mean whatever Trainer tells it
    install(host, objective())
    host.train()
    assert differ(bare, want, "router.weight") > 1e-3
    assert_close(weights(host.model), want, **EXACT)
    layers = [name for name in host.state.log_history[0] if name.startswith("router/load_balancing/")]
    assert sorted(name.split(".")[1] for name in layers) == ["decoder"] * 2 + ["encoder"] * 2


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_accelerate_loop(accumulate: int) -> None:
    want = plain(mixtral(), examples("equally"), objective())
    # Whoever reads a step's batches ahead must count them, rather than have the loader say where it ends.
    counted = GradientAccumulationPlugin(num_steps=accumulate, sync_with_dataloader=False)
    accelerator = Accelerator(gradient_accumulation_plugin=counted, cpu=True)
    model, losses = mixtral().train(), objective()
    losses.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loader = torch.utils.data.DataLoader(examples("equally"), batch_size=BATCH // accumulate, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches = list(loader)
    for start in range(0, len(batches), accumulate):
        losses.expect(batches[start : start + accumulate])
        for batch in batches[start : start + accumulate]:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
    assert_close(weights(accelerator.unwrap_model(model)), want, **EXACT)
    assert set(losses.log()) == TERMS


def sft(model: Any, out: Path, accumulate: int = 1, **changes: Any) -> Any:
    trl = pytest.importorskip("trl")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(place): place for place in range(64)}, unk_token="0")),
        pad_token="0",
        eos_token="2",
    )
    settings = {
        **ARGUMENTS,
        "output_dir": str(out),
        "per_device_train_batch_size": BATCH // accumulate,
        "gradient_accumulation_steps": accumulate,
        "gradient_checkpointing": False,
        "bf16": False,
        "router_aux_loss_coef": 0.0,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
    }
    arguments = trl.SFTConfig(**{**settings, **changes})
    rows = Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in examples()])
    return trl.SFTTrainer(model, arguments, train_dataset=rows, data_collator=collate, processing_class=tokenizer)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_sft_trainer_of_trl(accumulate: int, tmp_path: Path) -> None:
    want = plain(mixtral(torch.float32), examples(), objective())
    host = sft(mixtral(torch.float32), tmp_path, accumulate)
    install(host, objective())
    host.train()
    assert_close(weights(host.model), want, **FLOAT32)
    assert set(host.state.log_history[0]) >= TERMS


def test_sft_trainer_passes_the_models_loss_by_and_is_told_so(tmp_path: Path) -> None:
    """TRL computes its loss from log-probabilities; the model's output has a loss all the same, for nobody."""
    model = mixtral(torch.float32)
    host = sft(model, tmp_path)
    objective().attach(model)
    with pytest.raises(ObjectiveError, match=r"must be trained on.*install\(trainer, objective\)"):
        host.train()


@pytest.mark.parametrize("attached", [False, True])
def test_sft_trainer_that_adds_a_pooled_loss_is_refused(attached: bool, tmp_path: Path) -> None:
    """TRL turns transformers' balancing loss on by default, whatever the config said."""
    model, losses = mixtral(torch.float32), objective()
    if attached:
        losses.attach(model)
    with pytest.raises(ObjectiveError, match=r"router_aux_loss_coef=0\.0"):
        install(sft(model, tmp_path, router_aux_loss_coef=None), losses)


def test_an_objective_attached_to_another_model_stops_the_run(tmp_path: Path) -> None:
    other, model = mixtral(), mixtral()
    losses = objective().attach(other)
    host = trainer(model, tmp_path, callbacks=[RouterCallback(losses)])
    with pytest.raises(ObjectiveError, match="must see its passes"):
        host.train()


def test_lora_on_experts_under_a_trainer(tmp_path: Path) -> None:
    """Adapters on the experts and a trained copy of the router get the same weights from a loop and from Trainer."""
    config = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "r": 2}

    def adapted() -> Any:
        torch.manual_seed(1)
        return peft.get_peft_model(mixtral(), peft.LoraConfig(**config, modules_to_save=["gate"]))

    want, bare = plain(adapted(), examples(), objective()), plain(adapted(), examples(), None)
    host = trainer(adapted(), tmp_path, accumulate=2)
    install(host, objective())
    host.train()
    assert_close(weights(host.model), want, **EXACT)
    assert differ(bare, want, "modules_to_save.default.weight") > 1e-3


def test_install_is_called_once(tmp_path: Path) -> None:
    host = trainer(mixtral(), tmp_path)
    install(host, objective())
    with pytest.raises(ObjectiveError, match="must be called once"):
        install(host, objective())
