"""Translation of texts is measured, by decoders and by encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.errors import EvaluationError
from moesaic.evaluation import Evaluation, evaluate
from moesaic.evaluation.tasks.translation import Translation, language_name
from moesaic.experts.sparse_upcycling import SparseUpcycling

MADE: dict[str, Callable[[Path], Path]] = {"llama": pico.llama, "t5": pico.t5}


def louder(folder: Path) -> Path:
    """Move a pico model far enough from its start that it says one thing and another, in words that there are."""
    model = pico.load(folder)
    words = len(pico.WORDS) + 4
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for one in model.parameters():
            one.add_(0.4 * torch.randn(one.shape, generator=generator))
        model.get_output_embeddings().weight[words:] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in MADE.items():
        louder(make(folder / name))
    return folder


def rows(count: int = 9) -> list[dict[str, Any]]:
    return [
        {
            "text": pico.text(2 + n % 4, n),
            "translation": pico.text(2 + n % 3, n + 50),
            "language": ("de", "es", "fr")[n % 3],
        }
        for n in range(count)
    ]


def measured(model: Path, data: Any = None, **how: Any) -> Evaluation:
    return evaluate(model, Translation(longest=6, **how), rows() if data is None else data, batch_size=4)


def reference(folder: Path, row: dict[str, Any], beams: int) -> tuple[str, float]:
    """Return what transformers makes of a row alone: greedy by hand, beams by its own `generate`; and the loss."""
    model, tokenizer = pico.load(folder), transformers.AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    wanted, two = [*ids(row["translation"]), 2], model.config.is_encoder_decoder
    name = {"de": "German", "es": "Spanish", "fr": "French"}[row["language"]]
    given = [0] if two else [1, *ids(f"{row['text']}\nIn {name}:\n")]
    source = {"input_ids": torch.tensor([[1, *ids(row["text"]), 2]])} if two else {}
    where = "decoder_input_ids" if two else "input_ids"
    said = torch.tensor([given])
    with torch.no_grad():
        logits = model(**source, **{where: torch.tensor([given + wanted])}).logits[0, len(given) - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(wanted), reduction="sum")
        if beams > 1:
            how = {"num_beams": beams, "max_new_tokens": 6, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
            said = model.generate(**source, **{where: said}, **how)
        while beams == 1 and said.shape[1] < len(given) + 6 and said[0, -1] != 2:
            said = torch.cat([said, model(**source, **{where: said}).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return str(tokenizer.decode(said[0, len(given) :], skip_special_tokens=True)).strip(), float(nats)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", MADE)
def test_what_is_written_and_paid_is_what_transformers_says(name: str, beams: int, models: Path) -> None:
    """One row at a time against padded batches; nats are float32 sums of other batches."""
    found = measured(models / name, beams=beams)
    texts = set()
    for row, record in zip(rows(), found.records, strict=True):
        text, nats = reference(models / name, row, beams)
        assert record["hypothesis"] == text
        assert record["tokens"] == len(row["translation"].split()) + 1
        assert_close(record["nats"], nats, rtol=1e-5, atol=1e-4)
        texts.add(text)
    assert len(texts) > 1


def without_padding(model: Path, out: Path, **generation: Any) -> Path:
    """Return the model, which ends texts sooner, with a tokenizer whose first token is a word, and none to pad with."""
    made = pico.load(model)
    with torch.no_grad():
        made.get_output_embeddings().weight[2] *= 2
    made.save_pretrained(out)
    words = {"!": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{word: n for n, word in enumerate(pico.WORDS, 4)}}
    splits = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    splits.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=splits, **tokens).save_pretrained(out)
    if generation:
        transformers.GenerationConfig(**generation).save_pretrained(out)
    return out


def hypotheses(model: Path, data: Any, batch_size: int, **how: Any) -> list[str]:
    found = evaluate(model, Translation(**how), data, batch_size=batch_size)
    return [row["hypothesis"] for row in found.records]


def test_texts_that_end_early_do_not_depend_on_their_batch(models: Path, tmp_path: Path) -> None:
    """Behind its end nothing of a row is read, though its tokenizer has no token to pad with."""
    bare = without_padding(models / "llama", tmp_path / "bare")
    alone, together = (hypotheses(bare, rows(12), size, longest=12) for size in (1, 12))
    assert alone == together
    assert len({len(text.split()) for text in alone}) > 1


def test_what_a_model_forbids_itself_is_written_all_the_same(models: Path, tmp_path: Path) -> None:
    plain = without_padding(models / "llama", tmp_path / "plain")
    said = hypotheses(plain, rows(), 4, longest=12)
    forbids = {"repetition_penalty": 3.0, "suppress_tokens": [2], "no_repeat_ngram_size": 1}
    shy = without_padding(models / "llama", tmp_path / "shy", **forbids)
    assert hypotheses(shy, rows(), 4, longest=12) == said


def test_the_room_of_a_text_does_not_depend_on_its_batch(models: Path) -> None:
    """A long prompt leaves itself less room than is asked for, and the short ones beside it all of it."""
    words = (45, 3, 40, 3)
    data = [{**row, "text": pico.text(words[n], n)} for n, row in enumerate(rows(4))]
    window = {"window": 64, "longest": 30}
    assert hypotheses(models / "llama", data, 1, **window) == hypotheses(models / "llama", data, 4, **window)


def test_scores_stand_by_language_and_a_moe_is_compared(models: Path, tmp_path: Path) -> None:
    moesaic.upcycle(models / "llama", tmp_path / "moe", moesaic.MoESpec(4, 2), experts=SparseUpcycling())
    own, other = measured(models / "llama"), measured(tmp_path / "moe")
    assert {score.group for score in own.scores} == {"", "de", "es", "fr"}
    assert_close(own.value("loss"), other.value("loss"), rtol=1e-5, atol=1e-5)  # it starts at the dense function
    assert set(own.compare(other)) == {one.name for one in own.metrics}
    assert [row["cluster"] for row in own.records] == [row["text"] for row in rows()]


def test_the_token_of_the_language_begins_where_there_is_one(models: Path, tmp_path: Path) -> None:
    """The decoder is given it, so the loss is that of the rest."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "t5")
    tokenizer.add_tokens(["__de__"], special_tokens=True)
    pico.load(models / "t5").save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    given = [{**row, "language": "de"} for row in rows(3)]
    told, plain = measured(tmp_path / "t5", given), measured(models / "t5", given)
    assert [row["tokens"] for row in told.records] == [row["tokens"] for row in plain.records]
    assert abs(told.value("loss") - plain.value("loss")) > 1e-3


def test_a_chat_template_writes_prompts(models: Path, tmp_path: Path) -> None:
    pico.load(models / "llama").save_pretrained(tmp_path / "chat")
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "llama")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}the {{ m.content }} a {% else %}{{ m.content }} </s>"
        "{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    found, plain = measured(tmp_path / "chat"), measured(models / "llama")
    assert [row["tokens"] for row in found.records] == [row["tokens"] for row in plain.records]
    assert abs(found.value("loss") - plain.value("loss")) > 1e-3


def test_bad_rows_prompts_and_models_are_told_in_a_message(models: Path, tmp_path: Path) -> None:
    def refused(changes: dict[str, Any], model: str = "llama", **how: Any) -> str:
        with pytest.raises(EvaluationError) as caught:
            measured(models / model, [rows(1)[0], {**rows(2)[1], **changes}], **how)
        return str(caught.value)

    assert "row 1: translation is empty" in refused({"translation": ""})
    assert "row 1: text is of the type int" in refused({"text": 3})
    assert "row 1: no 'translation'" in refused({"translation": None})
    assert "Got 'germn'. Did you mean 'german'?" in refused({"language": "germn"})
    for model, column in (("llama", "text"), ("llama", "translation"), ("t5", "text"), ("t5", "translation")):
        assert "row 1: text and translation must fit 40 tokens" in refused({column: "the " * 100}, model, window=40)
    with pytest.raises(ValueError, match=r"must have a place for \{text\}"):
        Translation(prompt="say it")
    with pytest.raises(EvaluationError, match="must write text"):
        measured(pico.bert(tmp_path / "bert"))


def test_languages_are_named_by_code_or_name() -> None:
    assert [language_name(one) for one in ("de", "pt-BR", "Spanish")] == ["German", "Portuguese", "Spanish"]
