"""Tasks: what batches are made of which data, what is held out, and what is refused; of text alone: test_tasks_text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.integration import calibrating as pico
from tests.unit.preparing import batch, loss, rows_of_text
from torch.testing import assert_close

import moesaic
from moesaic.errors import TrainingError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.observing import GROUPS, observe
from moesaic.training.tasks.classification import Classification
from moesaic.training.tasks.contrastive import Contrastive
from moesaic.training.tasks.instructions import Instructions
from moesaic.training.tasks.speech_translation import SpeechTranslation
from moesaic.training.tasks.splitting import split
from moesaic.training.tasks.text import Text

EXACT = {"atol": 0, "rtol": 0}
"""The same bits: batches are made of the same numbers by the same code."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in pico.MODELS.items():
        make(folder / name)
    return folder


def rows_of_speech(folder: Path, count: int = 6) -> Path:
    """Write recordings and the file that names them."""
    lines = []
    for n in range(count):
        wave = 0.5 * np.sin(np.arange(1600 * (n + 2)) / (5 + n))
        soundfile.write(folder / f"{n}.wav", wave, 16000)
        lines.append(
            {"audio": f"{n}.wav", "text": pico.text(2 + n, n), "language": ("de", "es")[n % 2], "source": n % 3}
        )
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "rows.jsonl"


def images(folder: Path, count: int = 10, *, texts: bool = False) -> Path:
    """Write pictures into a sub-folder a class, with a text beside each if asked for."""
    for n in range(count):
        place = folder / ("cat", "dog")[n % 2] / f"{n}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pico.picture(n)).save(place)
        if texts:
            place.with_suffix(".txt").write_text(pico.text(3, n) + "\n")
    return folder


def test_a_batch_without_groups_has_them_where_the_data_have(models: Path) -> None:
    """Losses with priors need the group of each token, if only to hear that it is in none."""
    rows = [{"text": pico.text(20, n), "label": "a" if n == 9 else None} for n in range(12)]
    talks = [{"prompt": row["text"], "response": row["text"], "label": row["label"]} for row in rows]
    pairs = [{**row, "image": pico.picture(n)} for n, row in enumerate(rows)]
    for name, task in (
        ("llama", Text(rows, window=8, held_out=0)),
        ("llama", Instructions(talks, held_out=0)),
        ("clip", Contrastive(pairs, held_out=0)),
    ):
        prepared = task.prepare(models / name, 0)
        without = [one for one in prepared.train if one.group == -1][:4]
        assert prepared.collate(without)[GROUPS].tolist() == [-1] * 4


def test_speech_gets_the_decoder_aligned(models: Path, tmp_path: Path) -> None:
    prepared = SpeechTranslation(rows_of_speech(tmp_path), held_out=0).prepare(models / "whisper", 0)
    made = batch(prepared)
    assert made["input_features"].shape == (6, 8, 100)
    real = made["decoder_attention_mask"].bool()
    assert (made["decoder_input_ids"][:, 0] == 1).all()
    assert ((made["labels"] == -100) == ~real).all()
    for row in range(6):
        labels = made["labels"][row][real[row]]
        assert labels[:-1].tolist() == made["decoder_input_ids"][row][real[row]][1:].tolist()
        assert labels[-1] == 2
    assert prepared.groups == ("de", "es")
    assert made[GROUPS].tolist() == [0, 1] * 3
    assert prepared.tokens(made) == real.sum()
    assert loss(prepared, made).isfinite()


def test_whispers_prompt_is_given_and_not_predicted(tmp_path: Path) -> None:
    folder = pico.whisper(tmp_path / "whisper")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = ["<|startoftranscript|>", "<|de|>", "<|es|>", "<|translate|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    tokenizer.save_pretrained(folder)
    ids = dict(zip(words, tokenizer.convert_tokens_to_ids(words), strict=True))
    prepared = SpeechTranslation(rows_of_speech(tmp_path), held_out=0).prepare(folder, 0)
    made = batch(prepared)
    for row in range(6):
        prompt = [1, ids["<|de|>" if row % 2 == 0 else "<|es|>"], ids["<|translate|>"], ids["<|notimestamps|>"]]
        assert made["decoder_input_ids"][row][:4].tolist() == prompt
        assert made["labels"][row][:3].tolist() == [-100] * 3
        assert made["labels"][row][3] == made["decoder_input_ids"][row][4]
    rows = [{"audio": pico.recording(0.5), "text": "the fox", "language": "dee"}] * 2
    with pytest.raises(TrainingError, match=r"a token for\. Got 'dee'\. Did you mean 'de'\?"):
        SpeechTranslation(rows).prepare(folder, 0)


def test_recordings_of_one_source_stay_on_one_side(models: Path, tmp_path: Path) -> None:
    rows = rows_of_speech(tmp_path, 9)
    prepared = SpeechTranslation(rows, split_by="source", held_out=0.3).prepare(models / "whisper", 0)
    assert prepared.held_out is not None
    sides = [{one.row.values["source"] for one in side} for side in (prepared.train, prepared.held_out)]  # type: ignore[attr-defined]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_pairs_are_compared_by_the_models_own_loss(models: Path, tmp_path: Path) -> None:
    prepared = Contrastive(images(tmp_path, texts=True)).prepare(models / "clip", 0)
    made = batch(prepared, 4)
    assert made["pixel_values"].shape == (4, 3, 16, 16)
    assert made["input_ids"].shape == made["attention_mask"].shape
    assert made["return_loss"] is True
    assert prepared.groups == ("cat", "dog")
    assert 0.5 < loss(prepared, made) < 4
    long = Contrastive([{"image": pico.picture(n), "text": pico.text(60, n)} for n in range(4)])
    assert batch(long.prepare(models / "clip", 0), 2)["input_ids"].shape == (2, 24)


def test_siglip_reads_texts_filled_up_without_a_mask(models: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": pico.VOCAB, "max_position_embeddings": 12}
    config = transformers.SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    pico.save_tokenizer(tmp_path, bert=True)
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    pairs = [{"image": pico.picture(n), "text": pico.text(3, n)} for n in range(5)]
    prepared = Contrastive(pairs, batch_size=1).prepare(tmp_path, 0)  # its loss is a sigmoid of each pair
    made = batch(prepared, 3)
    assert made["input_ids"].shape == (3, 12)
    assert "attention_mask" not in made
    assert loss(prepared, made).isfinite()


def test_an_encoder_becomes_a_classifier_of_the_folders(models: Path, tmp_path: Path) -> None:
    data = images(tmp_path)
    prepared = Classification(data).prepare(models / "vit", 3)
    assert type(prepared.model).__name__ == "ViTForImageClassification"
    assert prepared.model.config.id2label == {0: "cat", 1: "dog"}
    made = batch(prepared)
    names = [one.row.name.split("/")[0] for one in (prepared.train[place] for place in range(len(prepared.train)))]
    assert [("cat", "dog")[label] for label in made["labels"]] == names
    assert_close(made[GROUPS], made["labels"], **EXACT)
    weight = prepared.model.get_parameter("classifier.weight")
    again, other = (Classification(data).prepare(models / "vit", seed).model for seed in (3, 4))
    assert_close(again.get_parameter("classifier.weight"), weight, **EXACT)
    assert not torch.equal(other.get_parameter("classifier.weight"), weight)
    stored = pico.load(models / "vit").state_dict()
    state = prepared.model.state_dict()
    for name, tensor in stored.items():
        if "pooler" not in name:
            assert_close(state[f"vit.{name}"], tensor, **EXACT)


def test_a_classifier_of_these_classes_keeps_its_head(models: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = images(tmp_path / "data")
    first = Classification(data).prepare(models / "vit", 3)
    first.model.save_pretrained(tmp_path / "made")
    first.save(tmp_path / "made")
    kept = Classification(data).prepare(tmp_path / "made", 99)
    assert_close(dict(kept.model.state_dict()), dict(first.model.state_dict()), **EXACT)
    rows = [{"image": pico.picture(n), "label": "xyz"[n % 3]} for n in range(6)]
    other = Classification(rows).prepare(tmp_path / "made", 1)
    assert other.model.config.num_labels == 3
    assert other.model.get_parameter("classifier.weight").shape == (3, 16)


def test_the_picture_tower_of_a_dual_encoder_becomes_a_classifier(models: Path, tmp_path: Path) -> None:
    model = Classification(images(tmp_path)).prepare(models / "clip", 0).model
    assert type(model).__name__ == "CLIPForImageClassification"
    stored, state = pico.load(models / "clip").state_dict(), model.state_dict()
    assert sum("mlp" in name for name in state) == 8
    for name, tensor in state.items():
        if not name.startswith("classifier"):
            assert_close(tensor, stored[name], **EXACT)


@pytest.fixture(scope="module")
def spliced(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every pico model that has no stock MoE class, with MoE layers."""
    folder = tmp_path_factory.mktemp("spliced")
    for name in ("vit", "whisper", "clip"):
        moesaic.upcycle(models / name, folder / name, moesaic.MoESpec(4, 2), experts=SparseUpcycling())
    return folder


def test_spliced_models_are_trained_like_their_dense_ones(spliced: Path, tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "pictures").mkdir()
    data = images(tmp_path / "pictures", texts=True)
    for name, task in (
        ("vit", Classification(data)),
        ("whisper", SpeechTranslation(rows_of_speech(tmp_path / "sound"))),
        ("clip", Contrastive(data)),
    ):
        prepared = task.prepare(spliced / name, 0)  # type: ignore[attr-defined]
        with observe(prepared.model) as passes:
            assert loss(prepared, batch(prepared, 2)).isfinite()
        assert passes[0]
        (made := tmp_path / name).mkdir()
        prepared.model.save_pretrained(made)
        prepared.save(made)
        again = task.prepare(made, 1)  # type: ignore[attr-defined]
        assert_close(loss(again, batch(again, 2)), loss(prepared, batch(prepared, 2)), **EXACT)


def test_a_spliced_encoder_becomes_a_classifier_that_loads_without_moesaic(spliced: Path, tmp_path: Path) -> None:
    prepared = Classification(images(tmp_path)).prepare(spliced / "vit", 0)
    assert type(prepared.model).__name__ == "MoEViTForImageClassification"
    (made := tmp_path / "made").mkdir()
    prepared.model.save_pretrained(made)
    prepared.save(made)
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == ["MoEViTForImageClassification"]
    loaded = transformers.AutoModelForImageClassification.from_pretrained(made, trust_remote_code=True)
    inputs = {"pixel_values": batch(prepared, 2)["pixel_values"]}
    assert_close(loaded(**inputs).logits, prepared.model(**inputs).logits, **EXACT)


MAKERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "text": ("llama", lambda _: Text(rows_of_text(), window=16)),
    "alone": ("llama", lambda _: Text(rows_of_text(), window=16, pack=False)),
    "instructions": ("llama", lambda _: Instructions([{"prompt": x, "response": x} for x in pico.texts()])),
    "speech": ("whisper", lambda folder: SpeechTranslation(rows_of_speech(folder))),
    "pairs": ("clip", lambda folder: Contrastive(images(folder, texts=True))),
    "classes": ("vit", lambda folder: Classification(images(folder))),
}


@pytest.mark.parametrize("name", MAKERS)
def test_everything_is_the_same_each_time(name: str, models: Path, tmp_path: Path) -> None:
    model, make = MAKERS[name]
    task = make(tmp_path)
    one, two = (task.prepare(models / model, 5) for _ in range(2))
    assert one.held_out is not None
    assert two.held_out is not None
    for first, second in ((one.train, two.train), (one.held_out, two.held_out)):
        assert len(first) == len(second) > 0
        for place in range(len(first)):
            assert_close(one.collate([first[place]]), two.collate([second[place]]), **EXACT)
    assert_close(dict(one.model.state_dict()), dict(two.model.state_dict()), **EXACT)
    assert one.model.dtype == torch.float32


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_saved_beside_the_weights_opens_again(name: str, models: Path, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    model, make = MAKERS[name]
    task = make(data)
    prepared = task.prepare(models / model, 0)
    prepared.model.save_pretrained(tmp_path / "made")
    prepared.save(tmp_path / "made")
    again = task.prepare(tmp_path / "made", 0)
    assert_close(batch(again, 2), batch(prepared, 2), **EXACT)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=40), st.floats(0, 0.9), st.randoms())
def test_a_split_divides_keys_and_depends_on_nothing_else(keys: list[str], share: float, random: Any) -> None:
    found = split(keys, share)
    assert sorted(found.train + found.held_out) == list(range(len(keys)))
    train, held_out = ({keys[place] for place in side} for side in (found.train, found.held_out))
    assert train
    assert not train & held_out
    assert bool(held_out) == (share > 0 and len(set(keys)) > 1)
    mixed = list(range(len(keys)))
    random.shuffle(mixed)
    again = split([keys[place] for place in mixed], share)
    assert {keys[mixed[place]] for place in again.held_out} == held_out


def test_a_split_holds_out_about_its_share_and_more_data_move_nothing() -> None:
    keys = [f"document {n}" for n in range(4000)]
    held_out = set(split(keys, 0.05).held_out)
    assert 150 < len(held_out) < 250  # 200 expected, standard deviation 14
    assert {place for place in split([*keys, "another"], 0.05).held_out if place < 4000} == held_out


def test_rows_of_datasets_with_class_labels(models: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["hen", "fox"])})
    rows = {"image": [Image.fromarray(pico.picture(n)) for n in range(6)], "label": [n % 2 for n in range(6)]}
    data = datasets.Dataset.from_dict(rows, features=features)
    prepared = Classification(data, held_out=0).prepare(models / "vit", 0)
    assert prepared.groups == ("fox", "hen")
    assert batch(prepared)["labels"].tolist() == [1, 0] * 3


def refusals() -> list[tuple[str, Callable[[Path], Any], str, str]]:
    pairs = [{"image": pico.picture(n), "text": "the fox"} for n in range(3)]
    talk = {"prompt": "the fox", "response": "runs", "language": "en"}
    sound = {"audio": pico.recording(0.4), "text": "the fox", "language": "de"}
    return [
        ("llama", lambda p: Text(p / "none"), "must exist", "no file"),
        ("llama", lambda _: Text([" ", ""]), "must hold a text. Got none", "no text"),
        ("llama", lambda _: Text(["the fox runs"], window=16), "fill a window of 16 tokens. Got 5 tokens", "short"),
        ("vit", lambda _: Text(["the fox"]), "predict the next token of a text. Got ViTModel", "class"),
        ("whisper", lambda _: Text(["the fox"]), "Got WhisperForConditionalGeneration", "encoder-decoder"),
        ("llama", lambda _: Instructions([]), "must hold an example. Got none", "no rows"),
        ("llama", lambda _: Instructions([{"promt": "a", "response": "b"}]), "Did you mean 'promt'?", "misspelt"),
        ("llama", lambda _: Instructions([{"messages": [{"role": "user", "content": ""}]}]), "role assistant", "turns"),
        (
            "llama",
            lambda _: Instructions([talk], groups="langage"),
            "no row has a value; there are ['language', ",
            "groups",
        ),
        ("clip", lambda _: Contrastive(pairs, groups="txet"), "Did you mean 'text'? Name one of them", "groups"),
        ("llama", lambda _: Instructions([{"text": "a"}]), "no 'messages' among ['text']", "columns"),
        ("whisper", lambda _: SpeechTranslation([{**sound, "language": None}]), "no 'language' among", "language"),
        ("whisper", lambda _: SpeechTranslation([{**sound, "audio": pico.recording(1.5)}]), "Got 1.5 s", "long"),
        ("whisper", lambda _: SpeechTranslation([{**sound, "text": "fox " * 40}]), "at most 32 tokens", "text"),
        ("whisper", lambda _: SpeechTranslation([sound], split_by="en"), "no 'en' among", "split_by"),
        ("llama", lambda _: SpeechTranslation([sound]), "hear and write. Got LlamaForCausalLM", "speech class"),
        ("clip", lambda _: Contrastive([{"image": pico.picture(0)}]), "row 0: no 'text' among", "no captions"),
        ("clip", lambda _: Contrastive(pairs[:1]), "two pairs or more", "one pair"),
        ("clip", lambda _: Contrastive(pairs, batch_size=1), "batch_size must be 2 or more", "alone in its batch"),
        ("bert", lambda _: Contrastive(pairs), "have a contrastive loss. Got BertModel", "clip class"),
        ("vit", lambda _: Classification(pairs), "Got none for 3 of 3", "unlabelled"),
        (
            "vit",
            lambda _: Classification([{**one, "label": "a"} for one in pairs]),
            "two classes or more. Got a (3)",
            "one class",
        ),
        ("bert", lambda p: Classification(images(p)), "must have a ...ForImageClassification class", "family"),
    ]


@pytest.mark.parametrize(("model", "make", "says", "case"), refusals(), ids=[f"{m}-{c}" for m, _, _, c in refusals()])
def test_refusals(model: str, make: Callable[[Path], Any], says: str, case: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        make(tmp_path).prepare(models / model, 0)
    assert says in str(caught.value)


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"held_out: it must be a share from 0 to below 1\. Got 1\.5"):
        split(["a"], 1.5)
