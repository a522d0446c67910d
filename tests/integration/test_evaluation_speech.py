"""Speech translation is measured: what a model writes and what references cost it, dense or spliced, kept or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.errors import EvaluationError
from moesaic.evaluation import Evaluation, evaluate, records_of
from moesaic.evaluation.tasks.speech_translation import SpeechTranslation
from moesaic.experts.sparse_upcycling import SparseUpcycling

RATE = 16000


def whisper(folder: Path) -> Path:
    """Save a pico Whisper whose decoder sees more of what it hears, so that it says one thing and another."""
    pico.whisper(folder)
    model = pico.load(folder)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for one in model.model.decoder.parameters():
            one.add_(0.5 * torch.randn(one.shape, generator=generator))
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4)
        for conv in (model.model.encoder.conv1, model.model.encoder.conv2):
            conv.weight.mul_(20)
        model.model.decoder.embed_tokens.weight[len(pico.WORDS) + 4 :] = 0  # ids that the tokenizer has no word for
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper(tmp_path_factory.mktemp("whisper") / "dense")


@pytest.fixture(scope="module")
def moe(dense: Path) -> Path:
    moesaic.upcycle(dense, dense.parent / "moe", moesaic.MoESpec(4, 2), experts=SparseUpcycling(), tower="decoder")
    return dense.parent / "moe"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))


def wave(number: int) -> np.ndarray:
    found: np.ndarray = 0.3 * np.sin(np.arange(RATE * (1 + number % 8) // 10) * (0.02 + 0.2 * number))
    return found


def rows(count: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "audio": {"array": wave(n), "sampling_rate": RATE},
            "text": pico.text(2 + n % 5, n),
            "language": ("de", "es")[n % 2],
            "source": f"sentence {n // 2}",
            "spoken": "fr",
        }
        for n in range(count)
    ]


def measured(model: Path, data: Any = None, batch_size: int = 4, **how: Any) -> Evaluation:
    return evaluate(model, SpeechTranslation(longest=6, **how), rows() if data is None else data, batch_size=batch_size)


def reference(folder: Path, row: dict[str, Any], beams: int) -> tuple[str, float]:
    """Return what transformers' own forward makes of a row: the text that it writes, and the loss of the reference.

    Greedy by hand, one forward a token, without a cache; beams by Whisper's own `generate`.
    """
    model, tokenizer = pico.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    heard = extractor(row["audio"]["array"], sampling_rate=RATE, return_tensors="pt")["input_features"]
    target = [1, *tokenizer(row["text"], add_special_tokens=False)["input_ids"], 2]
    with torch.no_grad():
        output = model(heard, decoder_input_ids=torch.tensor([target[:-1]]), labels=torch.tensor([target[1:]]))
        said = torch.tensor([[1]])
        if beams > 1:
            given = torch.tensor([[1]])
            said = model.generate(heard, decoder_input_ids=given, num_beams=beams, max_new_tokens=6, do_sample=False)
        while beams == 1 and said.shape[1] < 7 and said[0, -1] != 2:
            next_BV = model(heard, decoder_input_ids=said).logits[:, -1]
            said = torch.cat([said, next_BV.argmax(-1, keepdim=True)], 1)
    return str(tokenizer.decode(said[0], skip_special_tokens=True)).strip(), float(output.loss) * (len(target) - 1)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_and_paid_is_what_transformers_says(dense: Path, beams: int) -> None:
    """One row at a time against batches; nats are float32 sums of other batches, 1e-4 nats of ten or more."""
    found = measured(dense, beams=beams)
    texts = set()
    for given, record in zip(rows(), found.records, strict=True):
        text, nats = reference(dense, given, beams)
        assert record["hypothesis"] == text
        assert record["tokens"] == len(given["text"].split()) + 1
        assert_close(record["nats"], nats, rtol=1e-5, atol=1e-4)
        texts.add(text)
    assert len(texts) > 1
    paid = [float(row["nats"]) for row in found.records]
    assert_close(found.value("loss"), sum(paid) / sum(int(row["tokens"]) for row in found.records))


def test_there_are_scores_by_language_and_their_mean(dense: Path) -> None:
    found = measured(dense)
    assert {score.group for score in found.scores} == {"", "de", "es"}
    for name in ("BLEU", "chrF", "loss"):
        each = [found.value(name, language) for language in ("de", "es")]
        assert_close(found.value(f"{name}, mean over languages"), sum(each) / 2)
    assert {row["cluster"] for row in found.records} == {f"sentence {n}" for n in range(5)}
    assert found.records[0]["spoken"] == "fr"
    signatures = {score.metric.name: score.metric.signature for score in found.scores}
    assert signatures["BLEU"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_a_spliced_moe_writes_what_its_dense_model_does(dense: Path, moe: Path) -> None:
    """Copies of one FFN with gates that sum to one are that FFN, to the rounding of float32."""
    own, other = measured(dense), measured(moe)
    assert [row["hypothesis"] for row in own.records] == [row["hypothesis"] for row in other.records]
    assert_close(own.value("loss"), other.value("loss"), rtol=1e-5, atol=1e-5)
    assert own.compare(other)["BLEU"].value == 0


def test_kept_recordings_give_the_same_numbers(dense: Path, moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's float32 outputs, of batches of another size; the MoE takes what the dense model has left."""
    computed = {model: measured(model) for model in (dense, moe)}
    measured(dense, frozen_encoder=True)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(transformers.models.whisper.modeling_whisper.WhisperEncoder, "forward", refuse)
    for model, found in computed.items():
        kept = measured(model, frozen_encoder=True)
        assert [row["hypothesis"] for row in kept.records] == [row["hypothesis"] for row in found.records]
        assert_close(kept.value("loss"), found.value("loss"), rtol=1e-5, atol=1e-5)


def test_cut_recordings_do_not_depend_on_the_batch(moe: Path) -> None:
    """One at a time no recording is repeated, in a batch most are."""
    alone, together = (measured(moe, frozen_encoder=True, cut=True, batch_size=size) for size in (1, 10))
    assert [row["hypothesis"] for row in alone.records] == [row["hypothesis"] for row in together.records]
    assert_close(alone.value("loss"), together.value("loss"), rtol=1e-5, atol=1e-5)
    assert abs(alone.value("loss") - measured(moe).value("loss")) > 1e-4  # 30 s of silence are heard, too


def test_recordings_are_clusters_where_no_source_is_told(dense: Path, tmp_path: Path) -> None:
    for n in range(3):
        soundfile.write(tmp_path / f"{n}.wav", wave(n), RATE)
    data = tmp_path / "rows.jsonl"
    given = [{"audio": f"{n // 2}.wav", "text": pico.text(3, n), "language": "de"} for n in range(6)]
    data.write_text("\n".join(map(json.dumps, given)))
    found = evaluate(dense, SpeechTranslation(longest=4), data, out=tmp_path / "out", precision="bfloat16")
    assert len({row["cluster"] for row in found.records}) == 3
    assert [row["id"].partition("#")[0] for row in found.records] == [f"rows.jsonl:{n}" for n in range(1, 7)]
    assert [score.metric.name for score in found.scores] == ["BLEU", "chrF", "loss"]
    _, records = records_of(tmp_path / "out")
    assert records == list(found.records)


def test_bad_rows_and_models_are_told_in_a_message(dense: Path, tmp_path: Path) -> None:
    def refused(data: Any, model: Path = dense) -> str:
        with pytest.raises(EvaluationError) as caught:
            measured(model, data)
        return str(caught.value)

    empty = [{**row, "text": " "} if n == 1 else row for n, row in enumerate(rows(3))]
    assert "text must be texts" in refused(empty).replace("text and language", "text")
    assert "row 1: text is empty" in refused(empty)
    assert "is not UTF-8" in refused([{**rows(1)[0], "text": "\ud800"}])
    assert "no 'language'" in refused([{key: value for key, value in rows(1)[0].items() if key != "language"}])
    latin = tmp_path / "rows.csv"
    latin.write_bytes("audio,text,language\na.wav,Tür,de\n".encode("latin-1"))
    assert "must be UTF-8" in refused(latin)
    with pytest.raises(EvaluationError, match="Got no data"):
        evaluate(dense, SpeechTranslation())
    assert "must hear and write" in refused(rows(1), pico.llama(tmp_path / "llama"))
    with pytest.raises(ValueError, match="cut must come with frozen_encoder"):
        SpeechTranslation(cut=True)


def test_a_language_that_whisper_has_no_token_for_is_named(tmp_path: Path) -> None:
    folder = pico.whisper(tmp_path / "whisper")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    tokenizer.add_tokens(words, special_tokens=True)
    tokenizer.save_pretrained(folder)
    found = measured(folder, [{**row, "language": "de"} for row in rows(3)])
    assert all(
        row["tokens"] == len(given["text"].split()) + 1 for given, row in zip(rows(3), found.records, strict=True)
    )
    with pytest.raises(EvaluationError, match=r"Got 'xx'\. Write it as Whisper does"):
        measured(folder, [{**rows(1)[0], "language": "xx"}])
