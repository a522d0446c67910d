"""Speech to text in another language, for encoder-decoders such as Whisper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from moesaic.calibration.data import Kind, Source
from moesaic.training.recipe import Prepared
from moesaic.training.tasks.encoded import Precision
from moesaic.training.tasks.models import saver
from moesaic.training.tasks.speech import open_speech
from moesaic.training.tasks.splitting import SHARE, parted
from moesaic.training.tasks.tables import Table, open_table


@dataclass(frozen=True)
class SpeechTranslation:
    """Predicts a text in the language that is asked for from a recording.

    Rows have `audio` (a path, or samples with their rate), `text` and `language`, that of the text (`de`). Tokenizers
    of Whisper's kind begin with `<|startoftranscript|><|de|><|translate|><|notimestamps|>`, which is given and not
    predicted; others get the language for groups alone. Tokens of encoder and decoder get the group of their language.

    Args:
        data: a file or folder of rows, or rows. asks: Whisper's word for the task in its prompt.
        split_by: column whose equal values are never divided between training and held-out rows, such as the sentence
            in its first language; empty: the recording.
        held_out: share that is never trained on.
        frozen_encoder: never train the encoder, so that what it makes of a recording is computed once and kept on disk
            (`tasks/encoded.py`), for this run and all others on that encoder.
        cut: hear a frozen encoder's recording for little more than its length, not for the 30 s that Whisper fills up
            with silence; other numbers come of it, so the model must be evaluated with `cut`, too.
        precision: of what is kept of a frozen encoder; the run's own loses nothing.

    Raises:
        ValueError: where `cut` is asked for without `frozen_encoder`.
    """

    media: ClassVar[Kind] = "audio"
    data: Source
    asks: Literal["translate", "transcribe"] = "translate"
    split_by: str = ""
    held_out: float = SHARE
    frozen_encoder: bool = False
    cut: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.cut and not self.frozen_encoder:
            raise ValueError(
                "speech translation: cut must come with frozen_encoder, as a batch is heard for one length. Got cut "
                "alone. Set both, or neither."
            )

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load the model, tokenise the texts, and read the lengths of the recordings.

        Raises:
            TrainingError: where columns are missing, a language is unknown, a recording is longer than the model hears
                at once, or the model is no encoder-decoder of speech.
        """
        table = open_table(self.data, "audio")
        table.need("audio", "text", "language", *([self.split_by] if self.split_by else []))
        kept = self.precision if self.frozen_encoder else None
        speech = open_speech(folder, table, self.asks, kept=kept, cut=self.cut)
        rows, model = speech.rows, speech.model
        parts = parted(table.column("part"), _keys(table, self.split_by), self.held_out)
        return Prepared(
            model=model,
            train=[rows[place] for place in parts.train],
            held_out=[rows[place] for place in parts.held_out] or None,
            collate=speech.collate,
            tokens=lambda batch: int(batch["decoder_attention_mask"].sum()),
            groups=speech.languages,
            save=saver(folder, model),
        )


def _keys(table: Table, column: str) -> list[str]:
    if column:
        return [str(value) for value in table.column(column)]
    rows = (table[place] for place in range(len(table)))
    paths = [(row, row.values["audio"]) for row in rows]
    return [str(value) if isinstance(value, str | Path) else row.name for row, value in paths]
