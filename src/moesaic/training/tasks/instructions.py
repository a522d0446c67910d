"""Instruction tuning: the loss is on the responses alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from moesaic.calibration.data import Source
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import TrainingError, brief
from moesaic.lazy import np
from moesaic.training.recipe import Prepared
from moesaic.training.tasks.models import (
    UNSEEN,
    check_window,
    demand,
    generates_text,
    open_model,
    padded_rows,
    readers_of,
    real_BT,
    real_tokens,
    saver,
    with_groups,
)
from moesaic.training.tasks.splitting import SHARE, split
from moesaic.training.tasks.tables import Row, Table, open_table

Segment = tuple[str, bool]
"""A stretch of a conversation, and whether it is a response."""


@dataclass(frozen=True)
class Turns:
    """A tokenised conversation.

    Args:
        ids_T: int32. response_T: which of them are to be predicted. group: index, -1 for none.
    """

    ids_T: np.ndarray
    response_T: np.ndarray
    group: int


@dataclass(frozen=True)
class Instructions:
    """Next-token prediction of responses, given what stands before them.

    Rows have `messages` (dictionaries with `role` and `content`; each of the assistant's is a response), or `prompt`
    and `response`. The tokenizer's chat template writes them, where it has one; else prompt, newline, response. A
    conversation longer than the window is cut at its end, and left out where no response is left.

    Args:
        data: a file or folder of .jsonl, .json, .csv, .tsv, or rows. window: tokens of a conversation at most.
        groups: column whose values are groups of tokens for losses. held_out: share that is never trained on.

    Raises:
        ValueError: where the window holds fewer than two tokens.
    """

    data: Source
    window: int = 1024
    groups: str = "label"
    held_out: float = SHARE

    def __post_init__(self) -> None:
        check_window(self.window, "instructions")

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load the model and tokenise the data.

        Raises:
            TrainingError: where columns are missing, the model predicts no text, or no response fits the window.
        """
        model = open_model(folder)
        demand(model, generates_text(model), "instructions", "predict the next token", "Take a ...ForCausalLM model")
        table = open_table(self.data)
        chats = _conversations(table)
        reader: TextReader = readers_of(folder, model, self.window, "text")["text"]
        names, groups = table.groups_by(self.groups)
        parts = split([str(chat) for chat in chats], self.held_out)
        train, held_out = (
            [turns for place in places if (turns := tokenised(reader, chats[place], table[place].name, groups[place]))]
            for places in (parts.train, parts.held_out)
        )
        if not train:
            raise TrainingError(
                f"{table.name}: a response must begin within the window of {reader.window} tokens. Got none that does. "
                "Give a larger window, or shorter prompts."
            )
        return Prepared(
            model=model,
            train=train,
            held_out=held_out or None,
            collate=_Collate(reader.pad, bool(names)),
            tokens=real_tokens,
            groups=names,
            save=saver(folder, model),
        )


def _conversations(table: Table) -> list[list[dict[str, str]]]:
    """Return each row as messages."""
    first = table[0].values
    if "messages" in first:
        table.need("messages")
    elif "prompt" in first or "response" in first:
        table.need("prompt", "response")
    else:
        table.need("messages")  # says what is there
    return [_messages(table[place]) for place in range(len(table))]


def _messages(row: Row) -> list[dict[str, str]]:
    given = row.values.get("messages")
    if given is None:
        pairs = (("user", "prompt"), ("assistant", "response"))
        return [{"role": role, "content": str(row.values[name])} for role, name in pairs]
    whole = isinstance(given, list) and all(isinstance(x, Mapping) and {"role", "content"} <= set(x) for x in given)
    if not whole or not any(message["role"] == "assistant" for message in given):
        raise TrainingError(
            f"{row.name}: messages must be dictionaries with role and content, one of them of the role assistant. "
            f"Got {brief(given)}. Correct the row."
        )
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in given]


def tokenised(reader: TextReader, chat: list[dict[str, str]], name: str, group: int) -> Turns | None:
    """Return a conversation's ids up to the window, or None where no response is left.

    It is tokenised as a whole, as its prompt will be: many tokenizers begin every text with a space of their own. A
    token in which a prompt ends and a response begins is the response's.
    """
    templated = bool(reader.tokenizer.chat_template)
    segments = _templated(reader.tokenizer, chat, name) if templated else list(_plain(chat))
    prefix, _ = ([], None) if templated else reader.special()
    end = reader.tokenizer.eos_token_id
    suffix = [] if templated or end is None else [end]
    ids, place_T = _placed(reader, [text for text, _ in segments])
    said_T = np.array([response for _, response in segments])[place_T]
    ids_T = np.array([*prefix, *ids, *suffix], np.int32)
    response_T = np.array([*(False for _ in prefix), *said_T, *(True for _ in suffix)])
    cut = slice(None, reader.window)
    return Turns(ids_T[cut], response_T[cut], group) if response_T[cut][1:].any() else None


def _placed(reader: TextReader, texts: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Return the ids of texts that follow each other, and the index [T] of the text in which each token ends."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  # seconds of import

    whole, ends = "".join(texts), np.cumsum([len(text) for text in texts])
    if isinstance(reader.tokenizer, PreTrainedTokenizerFast):  # others know no places
        found = reader.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends_T = np.array([end for _, end in found["offset_mapping"]], int)
        return found["input_ids"], np.searchsorted(ends, ends_T).clip(max=len(texts) - 1)
    ids = reader.ids(whole)
    known = [_alike(ids, reader.ids(whole[:end])) for end in ends[:-1]]
    return ids, np.searchsorted(sorted(known), np.arange(len(ids)), side="right")


def _alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """Return how many tokens are the same from the start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))


def _plain(chat: Sequence[Mapping[str, str]]) -> Iterator[Segment]:
    for message in chat:
        response = message["role"] == "assistant"
        yield message["content"] if response else message["content"] + "\n", response


def _templated(tokenizer: Any, chat: list[dict[str, str]], name: str) -> list[Segment]:
    """Return what the template writes, cut where responses begin and end.

    Templates that rewrite earlier turns (they drop reasoning) let the last response alone be found.
    """
    found: list[Segment] = []
    said = ""
    for place in [n for n, message in enumerate(chat) if message["role"] == "assistant"]:
        before = _written(tokenizer, chat[:place], name, prompting=True)
        after = _written(tokenizer, chat[: place + 1], name, prompting=False)
        if not after.startswith(before):
            continue
        if not before.startswith(said):
            found, said = [], ""
        found += [(before[len(said) :], False), (after[len(before) :], True)]
        said = after
    if not said:
        raise TrainingError(
            f"{name}: the tokenizer's chat template must write a response behind its prompt. It does not. "
            "Give prompt and response to a tokenizer without a template."
        )
    return found


def _written(tokenizer: Any, chat: list[dict[str, str]], name: str, *, prompting: bool) -> str:
    from jinja2 import TemplateError  # noqa: PLC0415  # transformers needs it for templates

    if not chat:
        return ""
    try:
        found: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompting)
    except (TemplateError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{name}: the messages must be such as the chat template takes. It says: {error}. Correct the row."
        ) from error
    return found


@dataclass(frozen=True)
class _Collate:
    """Makes batches. grouped: whether the data have groups."""

    pad: int
    grouped: bool

    def __call__(self, rows: Sequence[Turns]) -> dict[str, Any]:
        ids = [one.ids_T for one in rows]
        labels = [np.where(one.response_T, one.ids_T, UNSEEN) for one in rows]
        batch = {"input_ids": padded_rows(ids, self.pad), "labels": padded_rows(labels, UNSEEN)}
        return with_groups({**batch, "attention_mask": real_BT(ids)}, [one.group for one in rows], known=self.grouped)
