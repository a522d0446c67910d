"""Speech into 16 languages from little data: SPRI's experiment (CoVoST2) in miniature, with the controls it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from moesaic.calibrating import Reading
from moesaic.corpora import FOLDS
from moesaic.corpora.stamps_speech import StampsSpeech
from moesaic.evaluation.tasks.speech_translation import SpeechTranslation
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.noise_upcycling import NoiseUpcycling
from moesaic.experts.norm_matched_copy import NormMatchedCopy
from moesaic.experts.norm_matched_gaussian import NormMatchedGaussian
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.recipes.speech_translation import speech_translation
from moesaic.routers.ridge import Ridge
from moesaic.studies.arm import Arm
from moesaic.studies.checking import Needs
from moesaic.studies.parts import ROWS, TEST, write_parts
from moesaic.studies.study import Measure, Say, Study
from moesaic.studies.usual import BALANCE, BARE, ISO_FLOP, MOE, UP_ISO_FLOP
from moesaic.training.checkpointing import read_json
from moesaic.training.recipe import Recipe, Training
from moesaic.training.stages import two_stages
from moesaic.training.tasks.speech_translation import SpeechTranslation as Spoken

LANGUAGES = replace(MOE, num_experts=16)
STEPS, BATCH = 96, 32
SCORES = ("BLEU, mean over languages", "chrF, mean over languages")
RATES = (5e-5, 1e-4)


@dataclass(frozen=True)
class SpeechBench:
    """Whisper's decoder on speech of the stamps; the encoder is frozen, and what it makes of each recording is kept.

    Args:
        model: an encoder-decoder of speech.
        source: `stamps_speech`, or a folder with train, validation and test.jsonl.
        longest: seconds of a recording. letters: bytes of a text, so that a batch is not mostly filling; of the corpus.
        rows: of each part at most; 0: all.
    """

    folds: ClassVar[int] = FOLDS

    model: str = "whisper-base"
    source: str = "stamps_speech"
    longest: float = 2.4
    letters: int = 24
    rows: int = 0

    def data(self, fold: int, out: Path, say: Say) -> None:
        corpus = StampsSpeech(longest=self.longest) if self.source == StampsSpeech.name() else None
        fits = (lambda row: len(row["text"].encode()) <= self.letters) if corpus else None
        most = {"train": 4000, "validation": 400, "test": 400}
        needs = Needs(texts=("text", "language"), columns=("audio",))
        write_parts(corpus or self.source, out, fold, most, self.rows, say, fits, needs)

    def dense(self, out: Path, say: Say) -> Path:
        from moesaic.checkpoints.sources import resolve  # noqa: PLC0415

        return resolve(self.model, progress=say)

    def upcycling(self) -> Mapping[str, Any]:
        return {"tower": "decoder", "reading": Reading(max_tokens=20_000)}

    def calibration(self, data: Path) -> Spoken:
        return Spoken(data / ROWS, frozen_encoder=True, cut=True, precision="bfloat16")

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        # What reads the frozen encoder, and what writes the vocabulary, would be a third of the cost of a step.
        layers = range(read_json(model / "config.json")["decoder_layers"])
        read = tuple(f"model.decoder.layers.{layer}.encoder_attn.{one}_proj" for layer in layers for one in "kv")
        training = replace(training, frozen=(*training.frozen, "model.decoder.embed_tokens", *read))
        made = speech_translation(model, data / ROWS, out, losses=(), stages=(), training=training)
        return replace(made, task=self.calibration(data))

    def measures(self) -> tuple[Measure, ...]:
        task = SpeechTranslation(frozen_encoder=True, cut=True, keep_in="bfloat16", longest=32)
        return (Measure(task, TEST, ("loss", *SCORES), batch_size=64),)


def make(*, smoke: bool) -> Study:
    """Return the study; of `smoke`, three arms and a few steps."""
    study = Study(
        name="speech_translation",
        question="Whisper base learns to write 16 languages that it never wrote, from speech in 8 others: what of the "
        "gain of SPRI is its init, what the parameters, what the routing?",
        bench=SpeechBench(),
        arms=arms(),
        budget=Training(
            steps=STEPS,
            batch_size=BATCH,
            warmup=0.05,
            log_every=20,
            held_out_tokens=4096,
            precision="float32",  # on a CPU that has no bfloat16 products, five times as fast as these
        ),
        rates=RATES,
        tuning_seeds=len(Study.seeds),  # on one seed alone, rates differ by less than the noise of some 70 sentences
        layers="every:2",
        references=("dense", "iso-flop", "languages"),
    )
    if not smoke:
        return study
    return replace(
        study,
        arms=tuple(study.arm(name) for name in ("dense", "iso-flop", "spri-two-stages")),
        references=("dense", "iso-flop"),
        bench=SpeechBench(rows=48),
        budget=replace(study.budget, steps=3, batch_size=8, held_out_tokens=64),
        rates=(3e-4,),
        seeds=(0,),
    )


def arms() -> tuple[Arm, ...]:
    """Return the methods."""

    def published(name: str, what: str, experts: Any, **further: Any) -> Arm:
        return Arm(name, what, "published", experts, spec=MOE, losses=BALANCE, **further)

    def control(name: str, what: str, experts: Any, **further: Any) -> Arm:
        return Arm(name, what, "control", experts, **{"spec": MOE, "losses": BALANCE, **further})

    return (
        Arm("dense", "fine-tuned as it is", "dense"),
        Arm("lora", "adapters of rank 32 on every linear; rates x 10", rate=10.0, training=(("lora", 32),)),
        published("copy", "copies beside a full shared copy", SparseUpcycling(shares_mode="full")),
        published("noise", "the same, noise on half the neurons", NoiseUpcycling(mode="add_rows", shares_mode="full")),
        published("drop", "the same, half the neurons redrawn", DropUpcycling(shares_mode="full")),
        published("spri-one-stage", "spectral blocks of norm 1e-3, all train", Spri()),
        published("spri-two-stages", "first linears frozen for 10 % of the steps", Spri(), stages=two_stages()),
        published("spri-up", "blocks in the first linear", Spri(placement="up"), stages=two_stages(placement="up")),
        control("copy-alone", "copies without a shared expert", SparseUpcycling(), spec=BARE),
        control("norm-matched-copy", "last linear 1e-3 of the dense one", NormMatchedCopy()),
        control("norm-matched-gaussian", "last linear Gaussian of norm 1e-3", NormMatchedGaussian()),
        control("zero-routed", "last linear zero", ZeroRouted()),
        ISO_FLOP,
        UP_ISO_FLOP,
        Arm(
            "languages",
            "16 experts, last linear zero, routers fitted to the target languages",
            "recommended",
            ZeroRouted(),
            router=Ridge(),
            spec=LANGUAGES,
        ),
        Arm(
            "languages-copies",
            "the same of 16 copies, no shared expert",
            "recommended",
            SparseUpcycling(),
            router=Ridge(),
            spec=replace(LANGUAGES, shared_expert=False),
        ),
    )
