"""The demo: a real model, upcycled, certified, asked questions, trained beside its dense parent, and looked into."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics  # chapters of Python's manual, in every Python
from typing import Any

from moesaic.api import Progress, upcycled
from moesaic.certification import Certificate, SplicedCertificate
from moesaic.checkpoints.dense import read_json
from moesaic.checkpoints.sources import resolve
from moesaic.convert import Options, Writing
from moesaic.diagnostics import diagnose
from moesaic.errors import TrainingError
from moesaic.experts.spri import Spri
from moesaic.informing import Knowledge
from moesaic.lazy import torch
from moesaic.losses.dpsl import Dpsl
from moesaic.modeling.loading import load
from moesaic.recipes.continued_pretraining import continued_pretraining
from moesaic.report import certificate_of, run_of, show_in_card, write
from moesaic.running import Trained, train
from moesaic.spec import Layers, MoESpec
from moesaic.training.precision import fastest
from moesaic.training.recipe import Loss, Recipe, Training
from moesaic.training.stages import Stage, two_stages

SOURCE = "smollm2-135m"
PROMPTS = ("The capital of France is", "The opposite of hot is", "Once upon a time, there was a")
NEW_TOKENS = 12
WINDOW = 128
TRAINING = Training(steps=16, batch_size=4, learning_rate=1e-4, log_every=4, evaluate_every=8)
"""8,192 tokens: a minute for the MoE on two cores."""
LOOKED_AT = 512
"""Tokens that the page is made from, about: seconds; comparing the weights of the experts takes half a minute more."""
ROUTER_RATE = 2e-2
"""A fresh router is nearly uniform; in 16 steps DPSL shapes it only if it moves this fast."""


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Args:
        folder: the upcycled model. certificate: of step 0. answers: (prompt, dense answer, MoE answer).
        moe, dense: both models after the same training. page: what the experts of the trained MoE do.
    """

    folder: Path
    certificate: Certificate | SplicedCertificate
    answers: list[tuple[str, str, str]]
    moe: Trained
    dense: Trained
    page: Path

    def losses(self) -> list[tuple[str, str, str]]:
        """Return (model, held-out loss before training, after), nats per token."""
        rows = (("dense", self.dense), ("MoE", self.moe))
        return [
            (name, *(f"{run.curve[place]['eval/loss']:.4f}" for place in (0, -1)))  # type: ignore[misc]
            for name, run in rows
        ]


def run(out: Path, *, overwrite: bool, say: Callable[[str], None], progress: Progress) -> Demo:
    """Upcycle SmolLM2-135M with SPRI (8 experts, top-2, a shared expert, every 4th layer), then train it.

    The MoE trains in two stages with DPSL, its dense parent without either, on the same tokens of Python's manual.

    Args:
        out: the folder to make. overwrite: replace an earlier demo. say, progress: told how far it is.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (the paper's constants).
    """
    if out.exists() and overwrite and not (out / "moe" / "moesaic.json").is_file():
        raise TrainingError(
            f"{out}: --overwrite must be given the folder of an earlier demo. It is none. Choose another."
        )
    if out.exists() and overwrite:
        shutil.rmtree(out)
    folder = out / "moe"
    options = Options(MoESpec(num_experts=8, top_k=2, layers=Layers("every:4")), Spri())
    made = upcycled(SOURCE, folder, options, Writing(), Knowledge(), say=say, progress=progress)
    assert made.certificate is not None
    dense = _answers(resolve(SOURCE), "answer (dense)", progress)
    moe = _answers(folder, "answer (MoE)", progress)
    training = replace(TRAINING, precision=fastest())
    recipes = (
        _recipe(folder, out / "moe-run", replace(training, router_learning_rate=ROUTER_RATE), (Dpsl(),), two_stages()),
        _recipe(Path(SOURCE), out / "dense-run", training, (), ()),
    )
    sparse, parent = (train(recipe, say=say, progress=progress) for recipe in recipes)
    page = _page(sparse.folder, out / "moe-run", say, progress)
    return Demo(folder, made.certificate, list(zip(PROMPTS, dense, moe, strict=True)), sparse, parent, page)


def _page(model: Path, run: Path, say: Callable[[str], None], progress: Progress) -> Path:
    """Write the report on the trained model beside it."""
    how: dict[str, Any] = {"max_tokens": LOOKED_AT, "batch_tokens": LOOKED_AT, "say": say, "progress": progress}
    diagnosis = diagnose(model, dense=resolve(SOURCE), **how).to_json()
    page, _ = write(model / "report.html", diagnosis, certificate_of(model), run_of(run, model))
    show_in_card(page, diagnosis, say)
    return page


def _recipe(model: Path, out: Path, training: Training, losses: Sequence[Loss], stages: Sequence[Stage]) -> Recipe:
    text = list(topics.values())
    return continued_pretraining(str(model), text, out, window=WINDOW, losses=losses, stages=stages, training=training)


def _answers(folder: Path, stage: str, progress: Progress) -> list[str]:
    """Return the greedy continuation of every prompt."""
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    model: Any = load(folder, read_json(folder / "config.json"), torch.float32)  # generate() has no usable type
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers: list[str] = []
    for prompt in PROMPTS:
        ids_1T = tokenizer(prompt, return_tensors="pt")["input_ids"]
        longer = model.generate(input_ids=ids_1T, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers.append(str(tokenizer.decode(longer[0, ids_1T.shape[1] :], skip_special_tokens=True)).strip())
        progress(stage, 1, len(PROMPTS))
    return answers
