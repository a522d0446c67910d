"""Conversations: how they are tokenised, and which of their tokens are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tests.integration import calibrating as pico
from tests.unit.preparing import batch, loss

from moesaic.calibration.readers.text import TextReader
from moesaic.errors import TrainingError
from moesaic.observing import GROUPS
from moesaic.training.tasks.instructions import Instructions, tokenised

CHAT = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
JOINED = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pico.llama(folder / "llama")
    return folder


def test_only_responses_are_predicted(models: Path) -> None:
    rows = [{"prompt": pico.text(4, n), "response": pico.text(3, n + 50), "label": "xy"[n % 2]} for n in range(12)]
    prepared = Instructions(rows, held_out=0).prepare(models / "llama", 0)
    made = batch(prepared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "llama")
    for place, row in enumerate(rows):
        answer = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], 2]
        assert made["labels"][place][made["labels"][place] != -100].tolist() == answer
        assert made["input_ids"][place][: -len(answer) or None].tolist()[:1] == [1]
    assert prepared.groups == ("x", "y")
    assert made[GROUPS].tolist() == [n % 2 for n in range(12)]
    assert loss(prepared, made).isfinite()


def chatty(models: Path, folder: Path, *, template: str = CHAT) -> Path:
    pico.llama(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_chat_templates_write_every_turn_and_each_answer_is_predicted(models: Path, tmp_path: Path) -> None:
    turns = [("user", "the fox"), ("assistant", "runs"), ("user", "a dog"), ("assistant", "eats the hen")]
    chat = [{"role": role, "content": content} for role, content in turns]
    prepared = Instructions([{"messages": chat}], held_out=0).prepare(chatty(models, tmp_path), 0)
    made = batch(prepared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert made["input_ids"][0].tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    said = made["labels"][0][made["labels"][0] != -100].tolist()
    assert tokenizer.decode(said) == "runs </s> eats the hen </s>"


REWRITING = (
    "{% set last = messages | length - 1 %}"
    "{% for m in messages %}<s> {{ m.role }} "
    "{% if loop.index0 == last and m.role == 'assistant' %}<unk> <unk> {% endif %}{{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)
"""Like Qwen3's: marks of reasoning stand before the last response alone."""


def test_of_chats_whose_earlier_turns_are_rewritten_the_last_response_is_predicted(
    models: Path, tmp_path: Path
) -> None:
    turns = [("user", "the fox"), ("assistant", "runs"), ("user", "a dog"), ("assistant", "eats the hen")]
    chat = [{"role": role, "content": content} for role, content in turns]
    made = batch(
        Instructions([{"messages": chat}], held_out=0).prepare(chatty(models, tmp_path, template=REWRITING), 0)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert made["input_ids"][0].tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    said = made["labels"][0][made["labels"][0] != -100].tolist()
    assert tokenizer.decode(said) == "<unk> <unk> eats the hen </s>"


def prefixing() -> Any:
    """Return a tokenizer like Llama 2's: it writes a space before whatever text it is given."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True))
    steps = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    made.normalizer = tokenizers.normalizers.Sequence(steps)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"])
    made.train_from_iterator([*pico.texts(), "\n", "the\nfox"], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("tokenizer", [prefixing(), transformers.ByT5Tokenizer()], ids=["fast", "slow"])
def test_a_conversation_is_tokenised_as_one_text(tokenizer: Any) -> None:
    chat = [{"role": role, "content": pico.text(4, n)} for n, role in enumerate(["user", "assistant"] * 2)]
    turns = tokenised(TextReader(tokenizer, 999, 0), chat, "row", 0)
    assert turns is not None
    asked, said, more, again = (message["content"] for message in chat)
    whole = tokenizer(f"{asked}\n{said}{more}\n{again}", add_special_tokens=False)["input_ids"]
    assert turns.ids_T.tolist() == [*whole, tokenizer.eos_token_id]
    ends = np.flatnonzero(np.diff(turns.response_T)) + 1  # where a prompt or a response ends
    pieces = [tokenizer.decode(part).replace("▁", " ") for part in np.split(turns.ids_T, ends)]
    joined = [piece.replace(" ", "") for piece in pieces]
    assert joined == [one.replace(" ", "") for one in (f"{asked}\n", said, f"{more}\n", f"{again}</s>")]
    assert turns.response_T[ends[0]]
    assert not turns.response_T[0]


def test_a_token_of_both_prompt_and_response_is_predicted() -> None:
    """Else the prompt would hold the first letters of its response."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "c": 3}, [("a", "b")]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=JOINED)
    chat = [{"role": "user", "content": "ca"}, {"role": "assistant", "content": "bc"}]
    turns = tokenised(TextReader(tokenizer, 99, 0), chat, "row", 0)
    assert turns is not None
    assert turns.ids_T.tolist() == [3, 2, 3]
    assert turns.response_T.tolist() == [False, True, True]


def test_conversations_longer_than_the_window_are_cut(models: Path) -> None:
    rows = [{"prompt": pico.text(5, n), "response": pico.text(9, n)} for n in range(4)]
    assert batch(Instructions(rows, window=10, held_out=0).prepare(models / "llama", 0))["input_ids"].shape == (4, 10)
    with pytest.raises(TrainingError, match=r"within the window of 4 tokens\. Got none"):
        Instructions(rows, window=4).prepare(models / "llama", 0)
