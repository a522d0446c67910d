"""Tasks on text: how documents are packed into windows, or not, and which are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.integration import calibrating as pico
from tests.integration.pico import save_text
from tests.unit.preparing import batch, rows_of_text
from torch.testing import assert_close

from moesaic.errors import TrainingError
from moesaic.observing import GROUPS
from moesaic.training.tasks.instructions import Instructions
from moesaic.training.tasks.models import separates_documents
from moesaic.training.tasks.text import Text


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pico.llama(folder / "llama")
    return folder


def test_text_is_packed_and_each_document_sees_itself_alone(models: Path) -> None:
    prepared = Text(rows_of_text(), window=24).prepare(models / "llama", 0)
    packed = batch(prepared, 4)
    assert packed["input_ids"].shape == (4, 24)
    assert "attention_mask" not in packed
    for row in range(4):
        ids, labels, places = (packed[name][row] for name in ("input_ids", "labels", "position_ids"))
        firsts = (places == 0).nonzero().flatten().tolist()
        assert set(labels[firsts[1:]].tolist()) == {-100}
        assert (ids[[one - 1 for one in firsts[1:]]] == 2).all()
        assert (labels != -100).sum() >= 24 - len(firsts)
    whole = prepared.model(packed["input_ids"], position_ids=packed["position_ids"], use_cache=False).logits[0]
    firsts = (packed["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(firsts) > 1
    for start, stop in zip(firsts, [*firsts[1:], 24], strict=True):
        alone = prepared.model(packed["input_ids"][:1, start:stop]).logits[0]
        assert_close(whole[start:stop], alone, atol=1e-5, rtol=1e-5)  # float32 sums over rows of another length


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5", "granite4"])
def test_documents_that_a_model_can_not_keep_apart_are_not_packed(name: str, tmp_path: Path) -> None:
    """Layers are convolutional, recurrent, or attention that looks at no positions: no config says the last."""
    save_text(tmp_path, name)
    pico.save_tokenizer(tmp_path)
    rows = rows_of_text(20)
    prepared = Text(rows, window=64, held_out=0).prepare(tmp_path, 0)
    made = batch(prepared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    documents = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    found = [ids[mask.bool()].tolist() for ids, mask in zip(made["input_ids"], made["attention_mask"], strict=True)]
    assert found == documents
    assert "position_ids" not in made


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma4"])
def test_attention_keeps_documents_apart(name: str, tmp_path: Path) -> None:
    assert separates_documents(save_text(tmp_path, name))


def test_every_token_of_a_group_is_in_one_window(models: Path) -> None:
    rows = [row for row in rows_of_text(30) if row["label"] == "a"]
    prepared = Text(rows, window=8, held_out=0).prepare(models / "llama", 0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "llama")
    stream = [one for row in rows for one in [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]]
    found = batch(prepared)["input_ids"].flatten().tolist()
    assert found == stream[: len(stream) // 8 * 8]
    assert len(stream) - len(found) < 8


def test_windows_know_their_group(models: Path) -> None:
    rows = rows_of_text()
    prepared = Text(rows, window=8).prepare(models / "llama", 0)
    assert prepared.groups == ("a", "b", "c")
    tokens = dict.fromkeys(range(3), 0)
    for place in range(len(prepared.train)):
        tokens[prepared.train[place].group] += 8
    lengths = [len(row["text"].split()) + 2 for row in rows]
    for group, label in enumerate("abc"):
        whole = sum(length for length, row in zip(lengths, rows, strict=True) if row["label"] == label)
        assert 0.7 * whole < tokens[group] <= whole
    assert GROUPS not in batch(Text(pico.texts(), window=8).prepare(models / "llama", 0), 2)


def test_documents_for_validation_are_held_out_and_all_others_trained_on(models: Path) -> None:
    rows = rows_of_text(40)
    own = [*rows[30:], {"text": pico.text(9, 99), "label": "z"}]
    prepared = Text(rows[:30], window=8, validation=own).prepare(models / "llama", 0)
    all_trained = Text(rows[:30], window=8, held_out=0).prepare(models / "llama", 0)
    assert_close(batch(prepared)["input_ids"], batch(all_trained)["input_ids"], rtol=0, atol=0)
    assert prepared.groups == ("a", "b", "c")
    assert prepared.held_out is not None
    held = [prepared.held_out[place] for place in range(len(prepared.held_out))]
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "llama")
    documents = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in own]
    parts = [ids[start : start + 8] for ids in documents for start in range(0, len(ids), 8)]
    assert [one.ids_T.tolist() for one in held] == [part for part in parts if len(part) > 1]
    assert held[-1].group == -1  # no training document has its label


def test_unpacked_text_is_padded_and_masked(models: Path) -> None:
    prepared = Text(pico.texts(), window=12, pack=False).prepare(models / "llama", 0)
    padded = batch(prepared)
    mask = padded["attention_mask"].bool()
    assert not mask.all()
    assert ((padded["labels"] == -100) == ~mask).all()
    assert (padded["input_ids"][~mask] == 0).all()
    assert prepared.tokens(padded) == mask.sum()


def test_sub_folders_of_text_are_groups(models: Path, tmp_path: Path) -> None:
    for name in ("de", "en"):
        (tmp_path / name).mkdir()
        for n in range(6):
            (tmp_path / name / f"{n}.txt").write_text(pico.text(30, n))
    prepared = Text(tmp_path, window=16).prepare(models / "llama", 0)
    assert prepared.groups == ("de", "en")
    assert set(batch(prepared)[GROUPS].tolist()) == {0, 1}


def test_held_out_documents_are_in_no_window(models: Path) -> None:
    rows = [{"text": f"{pico.text(6, n)}"} for n in range(80)]
    prepared = Text(rows, window=8, held_out=0.2).prepare(models / "llama", 0)
    assert prepared.held_out is not None
    stream = " ".join(map(str, batch(prepared)["input_ids"].flatten().tolist()))
    for place in range(len(prepared.held_out)):
        assert " ".join(map(str, prepared.held_out[place].ids_T.tolist())) not in stream


@pytest.mark.parametrize("window", [1, 0, -5])
@pytest.mark.parametrize("task", [Text, Instructions])
def test_a_window_without_anything_to_predict_is_refused(task: Any, window: int) -> None:
    with pytest.raises(ValueError, match=rf"window must be 2 tokens or more, .* Got {window}\."):
        task(["the fox runs"], window=window)


def test_a_model_without_a_tokenizer_is_refused(models: Path, tmp_path: Path) -> None:
    pico.load(models / "llama").save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="must have a processor for text"):
        Text(pico.texts()).prepare(tmp_path, 0)
