"""Speech to text in another language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moesaic.calibration.data import Source
from moesaic.errors import EvaluationError, listing
from moesaic.evaluation.base import EvaluationTask, Opened, Place, batches_of
from moesaic.evaluation.faults import as_evaluation
from moesaic.evaluation.intervals import Record
from moesaic.evaluation.judging import Judge, Said
from moesaic.evaluation.rolling import products
from moesaic.evaluation.rows import check_texts, ids_of, open_rows, sources_of
from moesaic.evaluation.writing import Writer, costs, one_line
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.observing import GROUPS
from moesaic.training.moving import on
from moesaic.training.tasks.encoded import named
from moesaic.training.tasks.speech import Speech, open_speech
from moesaic.training.tasks.tables import Table


@dataclass(frozen=True)
class SpeechTranslation(EvaluationTask):
    """What a model writes of recordings in the language that is asked for: BLEU, chrF, and loss a target token.

    Rows have `audio`, `text` (the reference) and `language`, that of the text; `source`, what is said, is resampled
    together with its translations, else a recording is. Prompts are those of training: Whisper's begin with
    `<|startoftranscript|><|de|><|translate|><|notimestamps|>`. Papers report the mean of BLEU over languages, which
    stands beside that of all segments.

    Reference: Wang et al. 2021, CoVoST 2, arXiv 2007.10310 (BLEU by language); Radford et al. 2022, Whisper.
    Deviates: no token is suppressed and nothing but the prompt is forced, as trained models write what Whisper may not.

    Args:
        asks: Whisper's word for the task in its prompt.
        beams: of the search; 1 is greedy. longest: new tokens of a text, at most.
        frozen_encoder: keep on disk what the encoder makes of recordings, for all models that share it.
        cut: hear recordings for little more than their length; for models that were trained so. With `frozen_encoder`.
        keep_in: precision of what is kept; `same`: that of the evaluation. bfloat16 takes half the disk.
        smooth: of BLEU, by sacreBLEU's name. words: of the longest word n-gram of chrF; 2 makes it chrF++.
        comet: folder or checkpoint of a COMET model, whose score is added; its source is `said`, else `source`.
    """

    asks: Literal["translate", "transcribe"] = "translate"
    beams: int = number(1, low=1, high=64)
    longest: int = number(128, low=1, high=1 << 16, unit="tokens")
    frozen_encoder: bool = False
    cut: bool = False
    keep_in: Literal["same", "float32", "bfloat16"] = "same"
    smooth: Literal["exp", "floor", "add-k", "none"] = "exp"
    words: int = number(0, low=0, high=2)
    comet: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut and not self.frozen_encoder:
            raise ValueError("speech_translation: cut must come with frozen_encoder. Got cut alone. Set both.")

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load the model, tokenise the references, and encode the recordings where the encoder is frozen.

        Raises:
            EvaluationError: where columns are missing, a reference is empty or not UTF-8, a language is unknown, a
                recording is too long, or the model is no encoder-decoder of speech.
        """
        table = open_rows(self.name(), data, "audio", "audio", "text", "language")
        check_texts(table, "text", "language")
        judge = Judge.of(self.smooth, self.words, self.comet)
        if judge.comet:
            _check_sources(table)
        with as_evaluation():
            kept = place.precision if self.keep_in == "same" else self.keep_in
            speech = open_speech(
                place.folder, table, self.asks, kept=kept if self.frozen_encoder else None, cut=self.cut
            )
            recordings, _ = named([one.row for one in speech.rows])
        speech.model.to(place.device)  # type: ignore[arg-type]  # of its stubs
        clusters = sources_of(table, recordings)
        writer = Writer(speech.model, speech.text.tokenizer, self.beams, self.longest)
        measure = _Translating(speech, writer, judge, clusters, place)
        ids = ids_of(table, recordings, table.column("language"), table.column("text"))
        return Opened(ids, measure, judge.metrics(speech.languages), batches_of(_lengths(speech), place.batch_size))


@dataclass(frozen=True)
class _Translating:
    """Measures rows. clusters: what each is resampled with."""

    speech: Speech
    writer: Writer
    judge: Judge
    clusters: Sequence[str]
    place: Place

    def __call__(self, places: Sequence[int]) -> list[Record]:
        from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415  # seconds of import

        rows = [self.speech.rows[place] for place in places]
        batch = on(self.place.device, {k: v for k, v in self.speech.collate(rows).items() if k != GROUPS})
        labels_BT, prompt = batch.pop("labels"), rows[0].prompt
        with torch.no_grad(), products(self.place.device, self.place.precision):
            output: Any = self.speech.model(**batch, use_cache=False, return_dict=True)
            heard = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
            mask = {"attention_mask": batch["attention_mask"]} if "attention_mask" in batch else {}
            room = self.speech.text.window - prompt
            prompts_BP = batch["decoder_input_ids"][:, :prompt]
            said = self.writer.write(prompts_BP, room, encoder_outputs=heard, **mask)
        paid = costs(output.logits, labels_BT)
        return self.judge.records([self._said(*one) for one in zip(places, said, paid, strict=True)])

    def _said(self, place: int, text: str, paid: tuple[float, int]) -> Said:
        values = self.speech.rows[place].row.values
        further = {"spoken": str(values["spoken"])} if values.get("spoken") is not None else {}
        reference, language = one_line(str(values["text"])), str(values["language"])
        return Said(_source(values), text, reference, language, *paid, self.clusters[place], further)


def _lengths(speech: Speech) -> list[int]:
    """Return how long each row is: first by its recording, where outputs are kept, then by its text."""
    window = speech.text.window + 1
    positions = [speech.encoded.positions(one.recording) if speech.encoded else 0 for one in speech.rows]
    return [long * window + len(one.ids) for long, one in zip(positions, speech.rows, strict=True)]


def _source(values: Mapping[str, Any]) -> str:
    """Return what is said, as text; empty where no column tells."""
    return next((one_line(str(values[name])) for name in ("said", "source") if values.get(name)), "")


def _check_sources(table: Table) -> None:
    wrong = [table[place].name for place in range(len(table)) if not _source(table[place].values)]
    if wrong:
        raise EvaluationError(
            f"{table.name}: for COMET every row must tell what is said, in `said` or `source`. Got none for:\n"
            f"{listing(wrong, 5)}\nAdd it, or leave COMET out."
        )
