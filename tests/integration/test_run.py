"""Whole runs on pico models: what they write, what they refuse, and where they stop."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.integration import pico, spliceable
from tests.integration.training_pico import Breaking, Toy, recipe, save_mixtral
from torch.testing import assert_close

import moesaic
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.errors import ObservationError, TrainingError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.losses.dpsl import Dpsl
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.running import train
from moesaic.training.checkpointing import checkpoints
from moesaic.training.heat_maps import CELL, ENTROPY_MAP, LOAD_MAP, entropy_map
from moesaic.training.recipe import Prepared, Training

ROOT = Path(__file__).parents[2]
PLAIN = {"teacher": None, "stages": (), "steps": 4, "save_every": 0, "accumulate": 1, "evaluate_every": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mixtral(tmp_path_factory.mktemp("training") / "moe")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral in BF16, made from a llama beside it, in shards that cut through layers."""
    folder = tmp_path_factory.mktemp("converted")
    pico.save_text(folder / "llama", "llama", num_hidden_layers=2)
    writing = moesaic.Writing(max_shard_bytes=200_000)
    spec = moesaic.MoESpec(4)
    moesaic.upcycle(folder / "llama", folder / "moe", spec, experts=SparseUpcycling(), dtype="BF16", writing=writing)
    return folder / "moe"


@dataclass(frozen=True)
class Images:
    """Classification of noise by its sum."""

    def prepare(self, folder: Path, seed: int) -> Prepared:
        drawn = torch.Generator().manual_seed(seed)
        rows = [torch.randn(3, 32, 32, generator=drawn) for _ in range(12)]
        return Prepared(
            model=moesaic.load(folder, dtype=torch.float32),
            train=rows[:8],
            held_out=rows[8:],
            collate=_pictures,
            tokens=lambda batch: 17 * len(batch["pixel_values"]),
            groups=(),
            save=lambda _: None,
        )


def _pictures(rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack(list(rows)), "labels": torch.tensor([int(x.sum() > 0) for x in rows])}


def places(folder: Path) -> dict[str, tuple[object, str]]:
    checkpoint = DenseCheckpoint.open(folder)
    return {name: (place.info, place.file.name) for name, place in checkpoint.tensors.items()}


def test_the_result_is_laid_out_as_the_converted_folder(converted: Path, tmp_path: Path) -> None:
    made = train(recipe(converted, tmp_path / "run", **PLAIN))
    assert places(made.folder) == places(converted)
    for name in ("config.json", "generation_config.json"):
        assert (made.folder / name).read_bytes() == (converted / name).read_bytes()
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(path.name for path in converted.iterdir())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    last = load_file(checkpoints(tmp_path / "run")[-1] / "model.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert_close(tensor, last[name].bfloat16(), rtol=0, atol=0)  # trained in float32, rounded once


def test_the_record_says_what_training_did(converted: Path, tmp_path: Path) -> None:
    made = train(recipe(converted, tmp_path / "run", **PLAIN))
    record = json.loads((made.folder / "moesaic.json").read_text())
    before = json.loads((converted / "moesaic.json").read_text())
    assert {key: record[key] for key in ("source", "spec", "experts", "certificate")} == {
        key: before[key] for key in ("source", "spec", "experts", "certificate")
    }
    assert record["preserves_function"] is False
    training = record["training"]
    assert training["steps"] == 4
    assert training["tokens"] == made.tokens > 0
    assert training["recipe"]["training"]["learning_rate"] == 3e-3
    assert [row["step"] for row in training["curve"]] == [0, 2, 4]
    kl = [row["eval/kl"] for row in training["curve"]]
    assert 0 <= kl[0] < 1e-3 < kl[-1]  # copies in bfloat16 are the dense model; trained ones are not
    assert training["certificate"]["kl"] > before["certificate"]["kl"]
    assert made.certificate == training["certificate"]
    moesaic.certify(converted.parent / "llama", made.folder)  # promises nothing that training broke


def test_another_parent_is_not_taken_for_the_one_of_the_record(converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "moe")
    pico.save_text(tmp_path / "llama", "llama", num_hidden_layers=2, hidden_size=32)
    said: list[str] = []
    made = train(recipe(tmp_path / "moe", tmp_path / "run", **PLAIN), say=said.append)
    assert made.certificate is None
    assert "llama holds other weights" in said[0]
    assert set(made.curve[-1]) == {"step", "eval/loss"}


def test_a_spliced_model_trains_and_loads_as_before(tmp_path: Path) -> None:
    spliceable.save(spliceable.make("vit", torch.float32), tmp_path / "vit")
    moesaic.upcycle(tmp_path / "vit", tmp_path / "moe", moesaic.MoESpec(4), experts=SparseUpcycling())
    made = train(recipe(tmp_path / "moe", tmp_path / "run", task=Images(), **PLAIN))
    assert places(made.folder) == places(tmp_path / "moe")
    assert sorted(p.name for p in made.folder.iterdir()) == sorted(p.name for p in (tmp_path / "moe").iterdir())
    assert (made.folder / "config.json").read_bytes() == (tmp_path / "moe" / "config.json").read_bytes()
    assert made.certificate is not None
    assert made.curve[-1]["eval/kl"] > made.curve[0]["eval/kl"]
    ours = moesaic.load(made.folder)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(made.folder, trust_remote_code=True)
    given = spliceable.inputs(ours)
    # The same weights through the same code, once from moesaic and once from the folder: the same bits.
    assert_close(spliceable.output(theirs, given), spliceable.output(ours, given), rtol=0, atol=0)


def test_a_nan_stops_the_run_before_it_spreads(model: Path, tmp_path: Path) -> None:
    """Experts break after step 3; the message names step, examples, layer and the checkpoint that is good."""
    given = recipe(model, tmp_path / "run", task=Breaking(), **{**PLAIN, "save_every": 2})
    with pytest.raises(TrainingError) as caught:
        train(given)
    message = str(caught.value)
    assert "At step 4" in message
    assert "the output of model.layers.1.mlp.experts" in message
    assert "on examples " in message
    assert str(tmp_path / "run" / "checkpoint-2") in message
    state = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_a_collapsed_layer_is_named_once(tmp_path: Path) -> None:
    folder = save_mixtral(tmp_path / "moe")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layers.1" in name and name.endswith("gate.weight"))
    state[name] = 1e4 * state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    said: list[str] = []
    train(recipe(folder, tmp_path / "run", **{**PLAIN, "losses": ()}), say=said.append)
    warned = [line for line in said if "collapsed" in line]
    assert len(warned) == 1
    assert warned[0].startswith("model.layers.1")
    assert "entropy / ln E is 0.0" in warned[0]
    assert "load_balancing" in warned[0]


def test_adapters_are_merged_into_a_plain_checkpoint(model: Path, tmp_path: Path) -> None:
    """Experts move, nothing else does; a run that is stopped goes on to the same losses."""
    given = {**PLAIN, "lora": 2, "save_every": 2}
    made = train(recipe(model, tmp_path / "run", **given))
    before, after = (load_file(folder / "model.safetensors") for folder in (model, made.folder))
    assert places(made.folder) == places(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".experts." in name}
    assert all("lora_" in name for name in load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors"))
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert train(recipe(model, tmp_path / "run", **given), resume=True).losses == made.losses


def test_a_dense_model_takes_adapters_on_its_linears(tmp_path: Path) -> None:
    """Linears that train move; what is frozen, embeddings and norms do not."""
    folder = tmp_path / "dense"
    pico.save_text(folder, "llama", num_hidden_layers=2)
    given = {**PLAIN, "lora": 2, "losses": (), "frozen": ("model.layers.0",), "learning_rate": 1e-2}
    made = train(recipe(folder, tmp_path / "run", **given))
    before, after = (dict(moesaic.load(one).named_parameters()) for one in (folder, made.folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layers.1" in name and "proj" in name}


def test_frozen_modules_stand_still_and_unknown_ones_are_named(model: Path, tmp_path: Path) -> None:
    made = train(recipe(model, tmp_path / "run", **PLAIN, frozen=("model.embed_tokens", "model.layers.0.self_attn")))
    before, after = (load_file(folder / "model.safetensors") for folder in (model, made.folder))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if "embed_tokens" in name or "layers.0.self_attn" in name}
    with pytest.raises(TrainingError, match=r"frozen must name modules of the model\. Got 'model.encode'"):
        train(recipe(model, tmp_path / "wrong", **PLAIN, frozen=("model.encode",)))


@pytest.mark.parametrize("changes", [{"checkpointing": True}, {"schedule": "cosine", "clip": 0.0}, {"epochs": 0.5}])
def test_ways_of_training(model: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    steps = None if "epochs" in changes else 4
    made = train(recipe(model, tmp_path / "run", **{**PLAIN, "steps": steps, **changes}))
    assert made.steps == (6 if "epochs" in changes else 4)
    if "checkpointing" in changes:
        plain = train(recipe(model, tmp_path / "plain", **PLAIN))
        assert made.losses == plain.losses  # the same operations in the same order, dropout included


def test_bfloat16_is_near_float32(model: Path, tmp_path: Path) -> None:
    """Autocast; weights and optimizer stay float32."""
    exact, near = (
        train(recipe(model, tmp_path / name, precision=name, **PLAIN)).losses for name in ("float32", "bfloat16")
    )
    assert near != exact
    # bfloat16 has 8 bits: 0.4 % a product; losses average many of them
    assert_close(torch.tensor(near), torch.tensor(exact), rtol=5e-3, atol=0)
    kept = load_file(tmp_path / "bfloat16" / "checkpoint-4" / "optimizer.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_the_curve_is_measured_in_float32_whatever_trains(converted: Path, tmp_path: Path) -> None:
    first = [
        train(recipe(converted, tmp_path / name, precision=name, **{**PLAIN, "steps": 1})).curve[0]["eval/kl"]
        for name in ("float32", "bfloat16")
    ]
    assert first[0] == first[1]  # bfloat16 moves outputs further than upcycling does


def test_a_run_that_fails_before_it_learns_leaves_nothing(model: Path, tmp_path: Path) -> None:
    priors = Dpsl(priors=((1.0, 0.5), (0.5, 1.0)))  # of 2 experts
    with pytest.raises(ValueError, match="one alpha for each"):
        train(recipe(model, tmp_path / "run", losses=(priors,), **PLAIN))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(TrainingError, match="an example for each process"):
        train(recipe(model, tmp_path / "mine", task=Toy(count=0), **PLAIN))
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_dense_model_trains_without_losses_alone(converted: Path, tmp_path: Path) -> None:
    dense = converted.parent / "llama"
    made = train(recipe(dense, tmp_path / "run", **{**PLAIN, "losses": ()}))
    assert made.curve[-1]["eval/loss"] < made.curve[0]["eval/loss"]
    assert places(made.folder) == places(dense)
    with pytest.raises(ObservationError, match=r"must have MoE layers.*--losses none --stages none"):
        train(recipe(dense, tmp_path / "other", **PLAIN))


def test_optimizer_state_of_a_dense_run_is_carried(converted: Path, tmp_path: Path) -> None:
    dense = train(recipe(converted.parent / "llama", tmp_path / "dense", **{**PLAIN, "losses": ()})).folder
    moesaic.upcycle(dense, tmp_path / "moe", moesaic.MoESpec(4), experts=SparseUpcycling(), certify=False)
    said: list[str] = []
    how = {**PLAIN, "optimizer_state": tmp_path / "dense"}
    train(recipe(tmp_path / "moe", tmp_path / "run", **how), say=said.append)
    # All but the two routers.
    assert "optimizer state of 19 parameters carried over, of 2 reset" in said


def test_scalars_go_to_tensorboard(model: Path, tmp_path: Path) -> None:
    train(recipe(model, tmp_path / "run", trackers=("tensorboard",), **PLAIN))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    layer = "model.layers.0.mlp"
    wanted = {"loss", f"router/health/entropy/{layer}", f"router/load_balancing/{layer}"}
    assert {f"train/{name}" for name in wanted} <= tags, tags


def test_heat_maps_go_to_tensorboard(model: Path, tmp_path: Path) -> None:
    how = {**PLAIN, "steps": 13, "log_every": 1}
    train(recipe(model, tmp_path / "run", trackers=("tensorboard",), **how))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for tag in (LOAD_MAP, ENTROPY_MAP):
        assert [one.step for one in events.Images(tag)] == [1, 11, 13]  # the first row of the log, a tenth, the last
    last = events.Images(ENTROPY_MAP)[-1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    layers = [f"model.layers.{number}.mlp" for number in (0, 1)]
    np.testing.assert_array_equal(decoded(last), entropy_map(layers, rows))  # the log holds every digit
    assert decoded(last).shape == (2 * CELL, 13 * CELL, 3)
    assert decoded(events.Images(LOAD_MAP)[-1]).shape == (2 * CELL, 4 * CELL, 3)
    (text,) = events.Tensors("router/heat_map/text_summary")
    assert "1. `model.layers.0.mlp`" in text.tensor_proto.string_val[0].decode()


def decoded(event: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_progress_is_told_of_every_step(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    said: list[str] = []
    train(recipe(model, tmp_path / "run", **PLAIN), say=said.append, progress=lambda *step: seen.append(step))
    assert sum(done for stage, done, _ in seen if stage == "train") == 4
    assert {total for stage, _, total in seen if stage == "train"} == {4}
    assert "step 4/4" in said[-1]
    assert "tokens/s" in said[-1]


def test_an_impossible_recipe_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    how = Training(steps=0, batch_size=0, warmup=1.5, keep=0, trackers=("no_such_tracker",), precision="float32")
    with pytest.raises(TrainingError) as caught:
        train(replace(recipe(model, tmp_path / "run"), training=how))
    for name in ("steps", "batch_size", "warmup", "keep", "no_such_tracker"):
        assert name in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_data_that_make_no_batch_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Got 0 examples"):
        train(recipe(model, tmp_path / "run", task=Toy(count=0), **PLAIN))


def test_folders_in_the_way_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    with pytest.raises(TrainingError, match="It holds something else"):
        train(recipe(model, tmp_path / "theirs", **PLAIN), overwrite=True)
    with pytest.raises(TrainingError, match="must stand apart from the model"):
        train(recipe(model, model / "run", **PLAIN))
    first = train(recipe(model, tmp_path / "run", **PLAIN))
    with pytest.raises(TrainingError, match="Got a finished run"):
        train(recipe(model, tmp_path / "run", **PLAIN))
    assert train(recipe(model, tmp_path / "run", **PLAIN), resume=True) == first
    longer = train(recipe(model, tmp_path / "run", **{**PLAIN, "steps": 5}), overwrite=True)
    assert longer.steps == 5


def test_a_decoder_of_token_ids_has_nothing_to_evaluate_on_but_what_is_held_out(model: Path, tmp_path: Path) -> None:
    """Its folder has no tokenizer, so the built-in passages can't be read."""
    given = {**PLAIN, "task": Toy(held_out=0)}
    with pytest.raises(TrainingError, match="Toy: evaluate_every must have held-out examples"):
        train(recipe(model, tmp_path / "run", **given))
    assert train(recipe(model, tmp_path / "run", **{**given, "evaluate_every": 0})).curve == ()


def test_several_processes_are_asked_for_by_name(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least two processes"):
        train(recipe(model, tmp_path / "run", parallel="fsdp2", **PLAIN))


def test_two_processes_share_a_model_in_three_ways(tmp_path: Path) -> None:
    """DDP, FSDP2 and expert parallelism take the same steps, and each goes on from a checkpoint to the same bits.

    A process in which something breaks is named by both.
    """
    # Without dropout, which each process draws for itself.
    moe = save_mixtral(tmp_path / "moe", attention_dropout=0.0)
    script = Path(__file__).with_name("run_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(moe), str(tmp_path / "out")],
        check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = load_file(tmp_path / "out" / "data" / "model" / "model.safetensors")
    for way in ("data", "fsdp2", "experts"):
        whole, again = (
            load_file(tmp_path / "out" / name / "model" / "model.safetensors") for name in (f"{way}-whole", way)
        )
        for name, tensor in wanted.items():
            assert_close(again[name], whole[name], rtol=0, atol=0)  # gloo adds two numbers in one order only
            # Six steps of float32 whose sums over processes and experts are taken in another order.
            assert_close(whole[name], tensor, rtol=0, atol=2e-6)
        assert (tmp_path / "out" / way / "model" / "config.json").read_bytes() == (moe / "config.json").read_bytes()
    messages = [(tmp_path / "out" / f"message-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert re.search(
        r"At step 3 they did not on examples \d+, \d+ \(process 1\).* output of model\.layers\.1\.mlp\.exp", messages[0]
    )


def test_losses_are_those_of_the_recipe(model: Path, tmp_path: Path) -> None:
    train(recipe(model, tmp_path / "run", **{**PLAIN, "losses": (LoadBalancing(weight=0.5),)}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    terms = {key.split("/")[1] for row in rows for key in row if key.startswith("router/")}
    assert terms == {"health", "load_balancing"}
