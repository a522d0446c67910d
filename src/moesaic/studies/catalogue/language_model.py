"""Continued pretraining on little text of 14 domains: which init helps, and whether routing follows domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from moesaic.corpora import FOLDS, Corpus
from moesaic.corpora.domains import DEFAULT, Domains
from moesaic.evaluation.tasks.perplexity import Perplexity
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.noise_upcycling import NoiseUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.experts.virtual_group import VirtualGroup
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.recipes.continued_pretraining import continued_pretraining
from moesaic.routers.centroids import Centroids
from moesaic.routers.ridge import Ridge
from moesaic.studies.arm import Arm
from moesaic.studies.checking import Needs
from moesaic.studies.parts import ROWS, TEST, read_rows, write_parts, write_rows
from moesaic.studies.study import Measure, Say, Study
from moesaic.studies.usual import BALANCE, BARE, ISO_FLOP, MOE, UP_ISO_FLOP
from moesaic.training.recipe import Recipe, Training
from moesaic.training.stages import two_stages
from moesaic.training.tasks.text import Text

SHARDS = 2
HALVES = replace(BARE, num_experts=SHARDS * MOE.num_experts, top_k=SHARDS * MOE.top_k)
"""As many parameters as eight experts, cut into halves."""
STEPS, BATCH, WINDOW = 20, 4, 128
RATES = (1e-4, 3e-4)
LAYERS = "last:4"
SMOKE = ("german", "python", "quotations")
TRAIN, VALIDATION, SAMPLE = "train.jsonl", "validation.jsonl", "calibration.jsonl"


@dataclass(frozen=True)
class LanguageBench:
    """SmolLM2 on text of 14 domains, as many rows of each; the layers below the MoE are frozen.

    Args:
        model: a decoder of text.
        source: `domains`, or a folder with train, validation and test.jsonl.
        domains, longest: of the corpus `domains`: which of them, and characters of a row.
        window: tokens of a row that is trained on.
        train, validation, test, sample: rows of a domain; `sample` is of the training rows, for methods that read
            activations.
    """

    folds: ClassVar[int] = FOLDS

    model: str = "smollm2-135m"
    source: str = "domains"
    domains: tuple[str, ...] = DEFAULT
    longest: int = 400
    window: int = WINDOW
    train: int = 60
    validation: int = 1
    test: int = 3
    sample: int = 4

    def data(self, fold: int, out: Path, say: Say) -> None:
        write_parts(self.corpus(), out, fold, {}, 0, say, needs=Needs(texts=("text",), blank=True))
        rows, test = read_rows(out / ROWS), read_rows(out / TEST)
        train = list(_first([row for row in rows if row["part"] == "train"], self.train))
        validation = [row for row in rows if row["part"] == "validation"]
        write_rows(out / TRAIN, train)
        write_rows(out / VALIDATION, _first(validation, self.validation))
        write_rows(out / SAMPLE, _first(train, self.sample))
        write_rows(out / TEST, _first(test, self.test))
        (out / ROWS).unlink()

    def corpus(self) -> Corpus | str:
        """Return what `source` names."""
        return Domains(self.domains, longest=self.longest) if self.source == Domains.name() else self.source

    def dense(self, out: Path, say: Say) -> Path:
        from moesaic.checkpoints.sources import resolve  # noqa: PLC0415

        return resolve(self.model, progress=say)

    def upcycling(self) -> Mapping[str, Any]:
        return {}

    def calibration(self, data: Path) -> Any:
        return data / SAMPLE

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        made = continued_pretraining(model, data / TRAIN, out, losses=(), stages=(), training=training)
        return replace(made, task=Text(data / TRAIN, self.window, validation=data / VALIDATION))

    def measures(self) -> tuple[Measure, ...]:
        task = Perplexity(window=256, stride=128)
        return (Measure(task, TEST, ("loss", "bits per byte"), batch_size=8),)


def make(*, smoke: bool) -> Study:
    """Return the study; of `smoke`, three arms and a few steps."""
    study = Study(
        name="language_model",
        question="SmolLM2 goes on learning 14 domains from little text: which init helps, and does routing follow "
        "domains?",
        bench=LanguageBench(),
        arms=arms(len(DEFAULT)),
        budget=Training(
            steps=STEPS,
            batch_size=BATCH,
            warmup=0.05,
            log_every=5,
            held_out_tokens=1 << 20,  # all there are
            precision="float32",  # eight times as fast as bfloat16 on a CPU that has no such products
        ),
        rates=RATES,
        layers=LAYERS,
        trains_below=0,
        references=("dense", "iso-flop"),
    )
    if not smoke:
        return study
    return replace(
        study,
        arms=tuple(arm for arm in arms(len(SMOKE)) if arm.name in ("dense", "zero-routed", "recommended")),
        bench=LanguageBench(domains=SMOKE, longest=200, train=40, validation=2, test=2, sample=20),
        budget=replace(study.budget, steps=2, batch_size=2),
        rates=RATES[:1],
        seeds=(0,),
        layers="last:1",
        references=("dense",),
    )


def arms(domains: int) -> tuple[Arm, ...]:
    """Return the methods, of which the recommended one has an expert for each domain."""

    def published(name: str, what: str, experts: Any, **further: Any) -> Arm:
        return Arm(name, what, "published", experts, **{"spec": MOE, "losses": BALANCE, **further})

    return (
        Arm("dense", "trained as it is", "dense"),
        Arm("lora", "adapters of rank 32 on every linear that trains", "published", training=(("lora", 32),)),
        published("copy", "copies beside a full shared copy", SparseUpcycling(shares_mode="full")),
        published("noise", "the same, noise on half the neurons", NoiseUpcycling(mode="add_rows", shares_mode="full")),
        published("drop", "the same, half the neurons redrawn", DropUpcycling(shares_mode="full")),
        published("spri-one-stage", "spectral blocks of norm 1e-3, all train", Spri()),
        published("spri-two-stages", "first linears frozen for 10 % of the steps", Spri(), stages=two_stages()),
        published("spri-up", "blocks in the up projection", Spri(placement="up"), stages=two_stages(placement="up")),
        published(
            "cluster-aware", "low-rank by clusters of inputs, no shared expert", ClusterAware(), router=Centroids(),
            spec=BARE,
        ),
        published("virtual-group", "16 halves, top-4, no shared expert", VirtualGroup(shards=SHARDS), spec=HALVES),
        Arm("zero-routed", "last linear zero", "control", ZeroRouted(), spec=MOE, losses=BALANCE),
        ISO_FLOP,
        UP_ISO_FLOP,
        Arm(
            "recommended",
            "an expert for each domain, last linear zero, routers fitted to the domains",
            "recommended",
            ZeroRouted(),
            Ridge(),
            spec=replace(MOE, num_experts=domains),
        ),
    )  # fmt: skip


def _first(rows: Iterable[Mapping[str, Any]], most: int) -> Iterator[Mapping[str, Any]]:
    """Yield the first rows of each domain, in the order in which they come."""
    seen: Counter[str] = Counter()
    for row in rows:
        domain = str(row.get("label"))
        seen[domain] += 1
        if seen[domain] <= most:
            yield row
