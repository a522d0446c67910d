"""A dual encoder learns to name pictures: the experiment of cluster-aware upcycling in miniature, with controls."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from moesaic.calibrating import Reading
from moesaic.corpora import Corpus
from moesaic.corpora.base import part_of, placed
from moesaic.corpora.emoji import Emoji
from moesaic.corpora.stamps_pictures import StampsPictures
from moesaic.errors import StudyError
from moesaic.evaluation.base import Place
from moesaic.evaluation.features import Towers, open_towers
from moesaic.evaluation.tasks.few_shot import FewShot
from moesaic.evaluation.tasks.retrieval import Retrieval
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.noise_upcycling import NoiseUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.lazy import torch
from moesaic.losses.eesd import Eesd
from moesaic.quiet import quiet
from moesaic.recipes.image_text_contrastive import image_text_contrastive
from moesaic.routers.centroids import Centroids
from moesaic.saving import disk_faults
from moesaic.studies.arm import Arm
from moesaic.studies.checking import Needs
from moesaic.studies.parts import ROWS, TEST, read_rows, write_parts, write_rows
from moesaic.studies.study import Measure, Say, Study
from moesaic.studies.usual import BALANCE, BARE, ISO_FLOP, MOE, UP_ISO_FLOP
from moesaic.training.recipe import Recipe, Training
from moesaic.training.stages import two_stages
from moesaic.training.tasks.tables import Row

STEPS, BATCH = 50, 64
RATES = (1e-4, 3e-4)
LAYERS = "7,9"
VISION, TEXT = "dinov2-small-focus", "minilm-l6"
DEPTH, PIXELS = 10, 56
"""Layers of the vision tower that are kept: its last two were made for saliency."""
OURS = f"{VISION} + {TEXT}"
CORPORA: tuple[Corpus, ...] = (Emoji(), StampsPictures(size=64))
SAMPLE, FEW, SHOTS = "calibration.jsonl", "few.jsonl", 5
MOST = {"validation": 200, "test": 300}
"""Rows of each corpus."""
FIT = (0.1, 1.0)
"""Ridge of images and of texts, times their mean variance: of twelve pairs, the best on the first fold's validation."""


@dataclass(frozen=True)
class PicturesBench:
    """A DINOv2 + MiniLM dual encoder on emoji in two styles and stamps; its lower layers and texts are frozen.

    The projections start in closed form, from pictures that every fold trains on. Equal texts stand far apart in the
    validation rows, so that no batch holds a picture's text twice.

    Args:
        model: made of the two towers; or a dual encoder such as CLIP, which is taken as it is.
        source: emoji and stamps; or a folder with train, validation and test.jsonl: `image`, `text`, `label`.
        rows: of each corpus and part at most, and to fit on; 0: all, but as many as `MOST` says.
        sample: training pictures of each corpus for methods that read activations.
    """

    folds: ClassVar[int] = 3
    """As many as leave some sources to the training parts of all, on which the projections are fitted."""

    model: str = OURS
    source: str = " + ".join(corpus.name() for corpus in CORPORA)
    rows: int = 0
    sample: int = 400

    def data(self, fold: int, out: Path, say: Say) -> None:
        if self.source == PicturesBench.source:
            for corpus in CORPORA:
                write_parts(corpus, out / corpus.name(), fold, MOST, self.rows, say)
            rows, test = (_joined(out, name) for name in (ROWS, TEST))
        else:
            needs = Needs(texts=("text",), columns=("image", "label"))
            write_parts(self.source, out, fold, MOST, self.rows, say, needs=needs)
            rows, test = (read_rows(out / name) for name in (ROWS, TEST))
        train = [row for row in rows if row["part"] == "train"]
        write_rows(out / ROWS, _apart(rows))
        write_rows(out / TEST, test)
        write_rows(out / SAMPLE, _sampled(train, self.sample))
        known = {label for label, count in Counter(row["label"] for row in train).items() if count >= SHOTS}
        few = [*train, *({**row, "part": "test"} for row in test)]
        write_rows(out / FEW, chosen := [row for row in few if row["label"] in known])
        if len(known) < 2 or all(row["part"] == "train" for row in chosen):
            raise StudyError(
                f"{self.source}: two labels or more must have {SHOTS} training rows, and a test row among them. Got "
                f"{len(known)} with as many, and {len(chosen)} rows of these. Add rows."
            )

    def dense(self, out: Path, say: Say) -> Path:
        if self.model != OURS:
            from moesaic.checkpoints.sources import resolve  # noqa: PLC0415

            return resolve(self.model, progress=say)
        if not out.exists():
            beside = out.with_name(f"{out.name}.partial")
            shutil.rmtree(beside, ignore_errors=True)
            _make(beside, self.rows, say)
            beside.rename(out)
        return out

    def upcycling(self) -> Mapping[str, Any]:
        return {"tower": "vision", "reading": Reading(max_tokens=20_000)}

    def calibration(self, data: Path) -> Any:
        return data / SAMPLE

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        return image_text_contrastive(model, data / ROWS, out, losses=(), stages=(), training=training)

    def measures(self) -> tuple[Measure, ...]:
        few = FewShot(shots=SHOTS, seeds=5, pooling="cls", classifier="prototype", reads="image")
        return (
            Measure(Retrieval(), TEST, ("loss", "recall@1", "recall@5"), batch_size=BATCH),
            Measure(few, FEW, ("accuracy",), batch_size=BATCH),
        )


def make(*, smoke: bool) -> Study:
    """Return the study; of `smoke`, three arms and a few steps."""
    study = Study(
        name="encoder",
        question="A DINOv2 + MiniLM dual encoder learns to name emoji and stamps: do experts made of clusters, with "
        "and without self-distillation, beat copies, noise, and as many parameters and operations without routing?",
        bench=PicturesBench(),
        arms=arms(),
        budget=Training(
            steps=STEPS,
            batch_size=BATCH,
            warmup=0.1,
            log_every=10,
            held_out_tokens=1 << 20,  # all there are
            frozen=("text_model",),
            precision="float32",  # eight times as fast as bfloat16 on a CPU that has no such products
        ),
        rates=RATES,
        tuning_seeds=len(Study.seeds),  # as in speech: one fold has too few held-out pictures to choose by
        layers=LAYERS,
        trains_below=1,
        references=("dense", "iso-flop"),
    )
    if not smoke:
        return study
    return replace(
        study,
        arms=tuple(study.arm(name) for name in ("dense", "copy", "cluster-aware-eesd")),
        bench=PicturesBench(rows=32, sample=32),
        budget=replace(study.budget, steps=2, batch_size=8),
        rates=RATES[:1],
        seeds=(0,),
        layers="9",
        references=("dense",),
    )


def arms() -> tuple[Arm, ...]:
    """Return the methods."""

    def published(name: str, what: str, experts: Any, **further: Any) -> Arm:
        return Arm(name, what, "published", experts, **{"spec": MOE, "losses": BALANCE, **further})

    def clustered(name: str, what: str, **further: Any) -> Arm:
        return published(name, what, ClusterAware(), router=Centroids(), **{"spec": BARE, **further})

    return (
        Arm("dense", "trained as it is", "dense"),
        published("copy", "copies, no shared expert", SparseUpcycling(), spec=BARE),
        published("noise", "the same, noise on half the neurons", NoiseUpcycling(mode="add_rows"), spec=BARE),
        published("drop", "the same, half the neurons redrawn", DropUpcycling(), spec=BARE),
        clustered("cluster-aware", "low-rank on a cluster each, routers of centroids, no shared expert"),
        clustered("cluster-aware-eesd", "the same, drawn to the ensemble of its experts", teacher=Eesd()),
        clustered("cluster-aware-shared", "cluster-aware beside a shared copy, half and half", spec=MOE),
        published("spri-two-stages", "first linears frozen for 10 % of the steps", Spri(), stages=two_stages()),
        published("spri-up", "blocks in the first linear", Spri(placement="up"), stages=two_stages(placement="up")),
        replace(published("zero-routed", "last linear zero", ZeroRouted()), kind="control"),
        ISO_FLOP,
        UP_ISO_FLOP,
        Arm(
            "recommended",
            "last linear zero, routers of centroids",
            "recommended",
            ZeroRouted(),
            router=Centroids(),
            spec=MOE,
        ),
    )


def _joined(out: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of both corpora; paths relative to `out`, and each category named with its corpus."""
    return [
        {**row, "image": f"{corpus}/{row['image']}", "label": f"{row['label']} ({corpus})"}
        for corpus in (one.name() for one in CORPORA)
        for row in read_rows(out / corpus / name)
    ]


def _apart(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in the order of how many with the same text stand before each."""
    seen: Counter[str] = Counter()
    rounds: list[list[dict[str, Any]]] = []
    for row in rows:
        if seen[row["text"]] == len(rounds):
            rounds.append([])
        rounds[seen[row["text"]]].append(row)
        seen[row["text"]] += 1
    return [row for found in rounds for row in found]


def _sampled(rows: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return the pictures of the first rows of each corpus, without their texts."""
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_corpus.setdefault(row["image"].partition("/")[0], []).append({"image": row["image"], "label": row["label"]})
    return [row for found in by_corpus.values() for row in found[:most]]


def _make(out: Path, most: int, say: Say) -> None:
    """Join the towers, and fit their projections to pictures that all folds train on; `most` of each corpus, 0: all."""
    from moesaic.checkpoints.sources import resolve  # noqa: PLC0415
    from moesaic.modeling.dual import join  # noqa: PLC0415  # imports transformers

    vision, text = (resolve(name, progress=say) for name in (VISION, TEXT))
    join(vision, text, out, layers=DEPTH, size=PIXELS)
    rows = [row for corpus in CORPORA for row in fitted_on(corpus, say)[: most or None]]
    say(f"encoder: projections fitted to {len(rows)} pictures")
    towers = open_towers(Place(out, torch.device("cpu"), batch_size=BATCH), "encoder")
    vision_DP, text_DP = _fitted(*_features(towers, rows))
    model: Any = towers.model
    with torch.no_grad():
        model.visual_projection.weight.copy_(vision_DP.T)
        model.text_projection.weight.copy_(text_DP.T)
    with quiet(), disk_faults(out):
        model.save_pretrained(out)


def fitted_on(corpus: Corpus, say: Say) -> list[Row]:
    """Return the pictures that every fold trains on."""
    folder = corpus.folder(say)
    folds = range(PicturesBench.folds)
    rows = corpus.examples(folder, "train", lambda source: all(part_of(source, fold) == "train" for fold in folds))
    return [Row(row["image"], placed(row, corpus.media, folder.as_posix())) for row in rows]


def _features(towers: Towers, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the towers make of pictures and of their texts before the projections, each of length 1 [N, D]."""
    model: Any = towers.model
    kept = model.visual_projection, model.text_projection
    model.visual_projection, model.text_projection = torch.nn.Identity(), torch.nn.Identity()
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    found = torch.cat([towers.images(batch) for batch in batches]), towers.texts([row.values["text"] for row in rows])
    model.visual_projection, model.text_projection = kept
    return found


def _fitted(vision_ND: torch.Tensor, text_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return projections [D, P] of both: regularised canonical directions, each as long as it is correlated.

    Lengths of features tell nothing, so elements are as large as a layer's that is drawn, which suits the step of Adam.
    """
    halves, whitened = [], []
    for x_ND, ridge in ((vision_ND.double(), FIT[0]), (text_ND.double(), FIT[1])):
        square_DD = x_ND.T @ x_ND
        values_D, vectors_DD = torch.linalg.eigh(square_DD)
        halves.append(vectors_DD * (values_D + ridge * values_D.mean()).rsqrt() @ vectors_DD.T)
        whitened.append(x_ND @ halves[-1])
    left_DP, correlation_P, right_PD = torch.linalg.svd(whitened[0].T @ whitened[1])
    found = halves[0] @ left_DP * correlation_P, halves[1] @ right_PD.T * correlation_P
    vision_DP, text_DP = (one / (one.square().mean() * len(one)).sqrt() for one in found)
    return vision_DP, text_DP
