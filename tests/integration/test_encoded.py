"""A frozen encoder's outputs: what is kept is what it would have computed, and nothing is computed twice."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.diagnostics.routing import routing_of
from moesaic.errors import TrainingError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.recipes.speech_translation import speech_translation
from moesaic.routers.ridge import Ridge
from moesaic.running import train
from moesaic.stats.label_moments import LabelMoments
from moesaic.training.recipe import Prepared, Recipe, Training
from moesaic.training.tasks.encoded import lengths
from moesaic.training.tasks.speech_translation import SpeechTranslation

RATE = 16000


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.whisper(tmp_path_factory.mktemp("whisper") / "dense")


@pytest.fixture(scope="module")
def moe(dense: Path) -> Path:
    moesaic.upcycle(dense, dense.parent / "moe", moesaic.MoESpec(4, 2), experts=SparseUpcycling(), tower="decoder")
    return dense.parent / "moe"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))


def rows() -> list[dict[str, Any]]:
    """Two texts of each of six recordings of 0.1 to 1 s, which need 5, 25 and all 50 positions of 20 ms."""
    waves = [0.5 * np.sin(np.arange(RATE * tenths // 10) / (5 + tenths)) for tenths in (1, 2, 3, 4, 7, 10)]
    sounds = [{"array": wave, "sampling_rate": RATE} for wave in waves]
    both = [(sound, language) for sound in sounds for language in ("de", "es")]
    return [{"audio": sound, "text": pico.text(2 + n % 5, n), "language": code} for n, (sound, code) in enumerate(both)]


def prepared(folder: Path, **how: Any) -> Prepared:
    return SpeechTranslation(rows(), held_out=0, **how).prepare(folder, 0)


def every(task: Prepared) -> list[Any]:
    return [task.train[place] for place in range(len(task.train))]


def loss(task: Prepared, examples: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = task.model(**{k: v for k, v in task.collate(examples).items() if "group" not in k}).loss
    return found


def test_lengths_divide_each_other() -> None:
    for whole in (1500, 50, 20, 7, 1):
        found = lengths(whole)
        assert found[-1] == whole
        assert all(long % short == 0 for short, long in pairwise(found))


def test_a_kept_encoder_says_what_it_says_uncut(moe: Path) -> None:
    """Float32: the same sums, of batches of another size; 1e-5 is their rounding."""
    kept, computed = prepared(moe, frozen_encoder=True), prepared(moe)
    for part in (slice(0, 5), slice(5, 12)):
        assert_close(loss(kept, every(kept)[part]), loss(computed, every(computed)[part]), rtol=1e-5, atol=0)
    assert not any(one.requires_grad for one in kept.model.get_encoder().parameters())


def test_a_cut_recording_is_heard_as_by_a_model_made_for_its_length(dense: Path) -> None:
    """The reference is transformers' own encoder of fewer positions; float32 in batches of another size."""
    task = prepared(dense, frozen_encoder=True, cut=True)
    one = every(task)[2]  # 0.2 s, which need 25 positions
    made: Any = task.model.get_encoder()
    config = transformers.WhisperConfig.from_pretrained(dense, max_source_positions=25)
    short = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    state = made.state_dict()
    short.load_state_dict({**state, "embed_positions.weight": state["embed_positions.weight"][:25]})
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(dense)
    wave = rows()[2]["audio"]["array"]
    features = extractor(wave, sampling_rate=RATE, max_length=25 * 320, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = short(features)[0]
    assert_close(task.collate([one])["encoder_outputs"][0], expected, rtol=1e-5, atol=1e-6)


def test_repeating_a_recording_changes_nothing(moe: Path) -> None:
    """In float64, to its rounding: the loss of each text alone, against that in a batch with longer recordings."""
    task = prepared(moe, frozen_encoder=True, cut=True)
    model, examples = task.model.double(), every(task)
    together = {k: v for k, v in task.collate(examples).items() if "group" not in k and k != "labels"}
    assert together["encoder_outputs"][0].shape[1] == 50
    with torch.no_grad():
        all_BTV = model(**{**together, "encoder_outputs": (together["encoder_outputs"][0].double(),)}).logits
        for place in (0, 2, 4):
            alone = task.collate([examples[place]])
            hidden = alone["encoder_outputs"][0].double()
            assert hidden.shape[1] < 50
            logits = model(decoder_input_ids=alone["decoder_input_ids"], encoder_outputs=(hidden,)).logits
            assert_close(all_BTV[place : place + 1, : logits.shape[1]], logits, rtol=1e-10, atol=1e-10)


def test_nothing_is_computed_twice(moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(moe, frozen_encoder=True, cut=True)
    encoder = type(first.model.get_encoder())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(encoder, "forward", refuse)
    again = prepared(moe, frozen_encoder=True, cut=True)
    batch, other = (one.collate(every(one)) for one in (first, again))
    assert torch.equal(batch["encoder_outputs"][0], other["encoder_outputs"][0])
    with pytest.raises(AssertionError, match="ran again"):
        prepared(moe, frozen_encoder=True)


def test_bfloat16_is_kept_rounded(moe: Path) -> None:
    """Eight bits of mantissa: half of the last is 2^-9."""
    whole, rounded = (prepared(moe, frozen_encoder=True, precision=x) for x in ("float32", "bfloat16"))
    given, found = (one.collate(every(one))["encoder_outputs"][0] for one in (whole, rounded))
    assert found.dtype == torch.float32
    assert_close(found, given, rtol=2**-8, atol=1e-6)
    assert not torch.equal(found, given)


def recipe(moe: Path, out: Path) -> Recipe:
    how = Training(steps=4, batch_size=4, learning_rate=1e-2, precision="float32", save_every=1, log_every=1)
    return speech_translation(moe, rows(), out, frozen_encoder=True, cut=True, held_out=0.2, training=how)


def test_training_goes_on_where_it_stopped_and_leaves_the_encoder(moe: Path, tmp_path: Path) -> None:
    train(recipe(moe, tmp_path / "whole"))

    class Stopped(BaseException):
        pass

    def watch(stage: str, done: int, _total: int) -> None:
        if stage == "train" and done and (tmp_path / "run" / "checkpoint-2").exists():
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe(moe, tmp_path / "run"), progress=watch)
    train(recipe(moe, tmp_path / "run"), resume=True)
    before, whole, run = (
        moesaic.load(one).state_dict() for one in (moe, *(tmp_path / x / "model" for x in ("whole", "run")))
    )
    for name, tensor in before.items():
        assert torch.equal(whole[name], run[name])
        if ".encoder." in name:
            assert torch.equal(tensor, whole[name])
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in before.items() if ".decoder." in name)


def test_what_can_not_be_kept_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cut must come with frozen_encoder"):
        SpeechTranslation(rows(), cut=True)
    moesaic.upcycle(dense, tmp_path / "moe", moesaic.MoESpec(4, 2), experts=SparseUpcycling(), tower="encoder")
    with pytest.raises(TrainingError, match="the encoder must be dense"):
        prepared(tmp_path / "moe", frozen_encoder=True)


def test_a_task_is_calibration_data_as_training_feeds_it(dense: Path, tmp_path: Path) -> None:
    task = SpeechTranslation(rows(), held_out=0, frozen_encoder=True, cut=True)
    found = moesaic.calibrate(dense, task, router=Ridge(), spec=moesaic.MoESpec(2, 1), tower="decoder")
    ready = task.prepare(dense, 0)
    made = ready.collate(every(ready))
    real_BT = made["decoder_attention_mask"].bool()
    seen: dict[str, torch.Tensor] = {}
    fc1 = ready.model.model.decoder.layers[-1].fc1
    with fc1.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach())), torch.no_grad():
        ready.model.eval()(**{key: value for key, value in made.items() if key not in ("labels", "group_ids")})
    groups_BT = made["group_ids"][:, None].expand_as(real_BT)
    moments = found.seen(found.sites[-1])[LabelMoments()]

    assert found.record.labels == ready.groups == ("de", "es")
    for group in (0, 1):
        chosen_TD = seen["x"][real_BT & (groups_BT == group)].double()
        assert float(moments["count_L"][group]) == len(chosen_TD)
        # Another order of the batch in float32; sums in float64.
        assert_close(moments["sum_LD"][group].double(), chosen_TD.sum(0), rtol=1e-5, atol=1e-5)


def test_an_upcycling_learns_from_a_task(dense: Path, tmp_path: Path) -> None:
    task = SpeechTranslation(rows(), held_out=0, frozen_encoder=True, cut=True)
    made = moesaic.upcycle(
        dense, tmp_path / "moe", moesaic.MoESpec(2, 1), router=Ridge(), tower="decoder", data=task, certify=False
    )
    ready = SpeechTranslation(rows(), held_out=0, frozen_encoder=True, cut=True).prepare(made.folder, 0)
    batches = [ready.collate([one]) for one in every(ready)]
    layers = routing_of(ready.model, batches)
    assert all(one.information > 0 for one in layers.values())
