"""Text to text in another language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from moesaic.calibration.data import Source
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import EvaluationError, did_you_mean
from moesaic.evaluation.base import EvaluationTask, Opened, Place, batches_of
from moesaic.evaluation.faults import as_evaluation
from moesaic.evaluation.intervals import Record
from moesaic.evaluation.judging import Judge, Said
from moesaic.evaluation.rolling import products
from moesaic.evaluation.rows import check_texts, ids_of, open_rows, sources_of
from moesaic.evaluation.writing import Writer, costs, one_line
from moesaic.lazy import np, torch
from moesaic.method import number
from moesaic.training.moving import on
from moesaic.training.tasks.instructions import tokenised
from moesaic.training.tasks.models import (
    UNSEEN,
    demand,
    generates_text,
    open_model,
    padded_rows,
    readers_of,
    real_BT,
    takes,
)
from moesaic.training.tasks.tables import Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODER, ENCODER = "{text}\nIn {language}:", "{text}"
"""What a model reads where no prompt is given: a decoder, and an encoder-decoder."""
WHOLE = 1 << 30
"""A window that cuts nothing."""


@dataclass(frozen=True)
class Translation(EvaluationTask):
    """What a model writes of texts in the language that is asked for: BLEU, chrF, and loss a target token.

    Rows have `text`, `translation` (the reference) and `language`, that of the translation; `source` (else the text) is
    resampled together. A decoder reads the prompt as it is trained on by `instruction_tuning`: through its chat
    template, else with a line break behind it; its first line counts. An encoder-decoder reads the prompt, and its
    decoder begins with the token of the language where the tokenizer has one (`__de__`, `deu_Latn`).

    Reference: Post 2018, A Call for Clarity in Reporting BLEU Scores, arXiv 1804.08771.

    Args:
        prompt: with {text}, and {language} for its English name; empty: the text, and to decoders the name.
        beams: of the search; 1 is greedy. longest: new tokens of a text, at most. window: tokens that are read.
        smooth: of BLEU, by sacreBLEU's name. words: of the longest word n-gram of chrF; 2 makes it chrF++.
        comet: folder or checkpoint of a COMET model, whose score is added; empty: none.
    """

    prompt: str = ""
    beams: int = number(1, low=1, high=64)
    longest: int = number(128, low=1, high=1 << 16, unit="tokens")
    window: int = number(1024, low=2, high=1 << 24, unit="tokens")
    smooth: Literal["exp", "floor", "add-k", "none"] = "exp"
    words: int = number(0, low=0, high=2)
    comet: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt and "{text}" not in self.prompt:
            raise ValueError(f"translation: the prompt must have a place for {{text}}. Got '{self.prompt}'. Add it.")

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load the model and tokenise the texts.

        Raises:
            EvaluationError: where columns are missing, a text is empty, not UTF-8 or too long, a language is unknown,
                or the model writes no text.
        """
        table = open_rows(self.name(), data, None, "text", "translation", "language")
        check_texts(table, "text", "translation", "language")
        judge = Judge.of(self.smooth, self.words, self.comet)
        with as_evaluation():
            model = open_model(place.folder)
            two = bool(model.config.is_encoder_decoder) and takes(model, "input_ids", "decoder_input_ids", "labels")
            remedy = "Take a ...ForCausalLM or ...ForConditionalGeneration model"
            demand(model, two or generates_text(model), "translation", "write text", remedy)
            reader: TextReader = readers_of(place.folder, model, self.window, "text")["text"]
            asking = _Asking(reader, self.prompt or (ENCODER if two else DECODER))
            pairs = [_pair(asking, model, table, n, two=two) for n in range(len(table))]
        model.to(place.device)  # type: ignore[arg-type]  # of its stubs
        languages = sorted(set(map(str, table.column("language"))))
        texts = [[str(text) for text in table.column(name)] for name in ("text", "translation", "language")]
        writer = Writer(model, reader.tokenizer, self.beams, self.longest)
        measure = _Translating(table, pairs, writer, reader, judge, sources_of(table, texts[0]), place)
        batches = batches_of([len(one) for one in pairs], place.batch_size)
        return Opened(ids_of(table, *texts), measure, judge.metrics(languages), batches)


@dataclass(frozen=True)
class _Pair:
    """Ids of a source and of its target; `prompt` of the target's are given. A decoder's source is empty."""

    source: Sequence[int]
    target: Sequence[int]
    prompt: int

    def __len__(self) -> int:
        return len(self.source) + len(self.target)


@dataclass(frozen=True)
class _Asking:
    """Writes prompts."""

    reader: TextReader
    prompt: str

    def text(self, values: Mapping[str, Any]) -> str:
        said = self.prompt.replace("{text}", "\0")
        if "{language}" in said:
            said = said.replace("{language}", language_name(str(values["language"])))
        return said.replace("\0", one_line(str(values["text"])))

    def begins(self, language: str) -> list[int]:
        """Return the token of a language, where the tokenizer has one."""
        known = self.reader.tokenizer.get_added_vocab()
        return [known[word] for word in (f"__{language}__", language) if word in known][:1]


def language_name(language: str) -> str:
    """Return the English name of a language.

    Raises:
        EvaluationError: where its code is unknown.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # noqa: PLC0415  # seconds of import

    code = language.lower().partition("-")[0]
    name = LANGUAGES.get(code) or (code if code in LANGUAGES.values() else None)
    if name is None:
        raise EvaluationError(
            f"translation: the language must be one whose name is known, as the prompt says it. Got '{language}'."
            f"{did_you_mean(code, [*LANGUAGES, *LANGUAGES.values()])} Write it as de or german, or pass a prompt "
            "without {language}."
        )
    return str(name).title()


def _pair(asking: _Asking, model: PreTrainedModel, table: Table, place: int, *, two: bool) -> _Pair:
    row, reader = table[place], asking.reader
    asked, wanted = asking.text(row.values), one_line(str(row.values["translation"]))
    if two:
        prefix, suffix = reader.special()
        source = [*prefix, *reader.ids(asked), *suffix]
        begin = [int(model.config.decoder_start_token_id), *asking.begins(str(row.values["language"]))]
        end = reader.tokenizer.eos_token_id
        made = _Pair(source, [*begin, *reader.ids(wanted), *([] if end is None else [end])], len(begin))
    else:
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": wanted}]
        turns = tokenised(replace(reader, window=WHOLE), chat, row.name, 0)
        if turns is None:
            raise _too_long(row.name, reader.window)
        first = int(np.argmax(turns.response_T))
        made = _Pair([], turns.ids_T.tolist(), first)
    if max(len(made.source), len(made.target)) > reader.window:
        raise _too_long(row.name, reader.window)
    return made


def _too_long(name: str, window: int) -> EvaluationError:
    return EvaluationError(
        f"{name}: text and translation must fit {window} tokens. They do not. Give a larger window, or cut the row."
    )


@dataclass(frozen=True)
class _Translating:
    """Measures rows. clusters: what each is resampled with."""

    table: Table
    pairs: Sequence[_Pair]
    writer: Writer
    reader: TextReader
    judge: Judge
    clusters: Sequence[str]
    place: Place

    def __call__(self, places: Sequence[int]) -> list[Record]:
        pairs = [self.pairs[place] for place in places]
        with torch.no_grad(), products(self.place.device, self.place.precision):
            output, labels_BT = self._read(pairs)
            said = self._written(pairs, output)
        paid = costs(output.logits, labels_BT)
        return self.judge.records([self._said(*one) for one in zip(places, said, paid, strict=True)])

    def _read(self, pairs: Sequence[_Pair]) -> tuple[Any, torch.Tensor]:
        """Return what the model makes of references, and the labels that belong to its logits."""
        inputs = [one.target[:-1] for one in pairs]
        labels = [np.where(np.arange(1, len(one.target)) < one.prompt, UNSEEN, one.target[1:]) for one in pairs]
        given = {"input_ids": padded_rows(inputs, self.reader.pad), "attention_mask": real_BT(inputs)}
        if pairs[0].source:
            given = {f"decoder_{name}": value for name, value in given.items()}
            given |= _sources(pairs, self.reader.pad)
        moved = on(self.place.device, given)
        found = self.writer.model(**moved, use_cache=False, return_dict=True)
        return found, padded_rows(labels, UNSEEN).to(self.place.device)

    def _written(self, pairs: Sequence[_Pair], output: Any) -> list[str]:
        """Return what the model writes.

        Encoder-decoders go on from prompts of one length at a time. So do decoders where a prompt leaves less room than
        is asked for: how much a row may hold must not depend on its batch.
        """
        from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415  # seconds of import

        said, two, window = [""] * len(pairs), bool(pairs[0].source), self.reader.window
        shares = {one.prompt: one.prompt if two else max(one.prompt, window - self.writer.longest) for one in pairs}
        for share in sorted(set(shares.values())):
            rows = [row for row, one in enumerate(pairs) if shares[one.prompt] == share]
            prompts_BP, real_BP = _left_padded(
                [pairs[row].target[: pairs[row].prompt] for row in rows], self.reader.pad
            )
            more: dict[str, Any] = {"attention_mask": real_BP}
            if two:
                more = {"attention_mask": _sources(pairs, self.reader.pad)["attention_mask"][rows]}
            moved = on(self.place.device, {"prompts": prompts_BP, **more})
            if two:
                moved["encoder_outputs"] = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state[rows])
            room = max(window - share, 1)
            for row, text in zip(rows, self.writer.write(moved.pop("prompts"), room, **moved), strict=True):
                said[row] = text
        return said

    def _said(self, place: int, text: str, paid: tuple[float, int]) -> Said:
        values = self.table[place].values
        source, reference = one_line(str(values["text"])), one_line(str(values["translation"]))
        return Said(source, text, reference, str(values["language"]), *paid, self.clusters[place], {"text": source})


def _sources(pairs: Sequence[_Pair], pad: int) -> dict[str, torch.Tensor]:
    sources = [one.source for one in pairs]
    return {"input_ids": padded_rows(sources, pad), "attention_mask": real_BT(sources)}


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [B, P] that all end in the last place, and which of them are no padding."""
    backwards = [row[::-1] for row in rows]
    return padded_rows(backwards, pad).flip(1), real_BT(rows).flip(1)
