"""From a recipe to a trained model in a folder: what `moesaic train` does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic import __version__
from moesaic.calibration.ranks import Ranks, join
from moesaic.certification import Certificate, SplicedCertificate, certify
from moesaic.checkpoints.audit import audit
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.checkpoints.place import RECORD
from moesaic.checkpoints.sources import resolve
from moesaic.errors import MoesaicError, TrainingError
from moesaic.report.card import without_report
from moesaic.training import settings
from moesaic.training.checkpointing import read_json, write_json
from moesaic.training.earlier import forget, restore
from moesaic.training.folder import MODEL, claim, settle, withdraw
from moesaic.training.logbook import NAME as LOG
from moesaic.training.logbook import Logbook
from moesaic.training.publishing import write_model
from moesaic.training.recipe import Recipe
from moesaic.training.record import NAME, record

if TYPE_CHECKING:
    from moesaic.training.run import Finished

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with (stage, done since the last call, in all); stages are train (optimizer steps) and certify (layers)."""
CURVE = ("eval/kl", "eval/cosine_distance", "eval/loss")
BARE = "---\nlibrary_name: transformers\ntags: [moesaic]\n---\n\n# {name}\n"
"""The card of what was trained from a model without one."""


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Args:
        folder: the trained model. certificate: against the dense parent, after training; None where that is gone.
        curve: step, and what was measured then: `eval/kl` or `eval/cosine_distance` to the parent, `eval/loss`.
        losses: step, and the mean training loss of the steps since the row before.
        steps, tokens: of the whole run. is_regularised: whether the training loss has router losses in it.
    """

    folder: Path
    certificate: Mapping[str, Any] | None
    curve: tuple[Mapping[str, float], ...]
    losses: tuple[tuple[int, float], ...]
    steps: int
    tokens: int
    is_regularised: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return all of it, for machines."""
        losses = [{"step": step, "loss": loss} for step, loss in self.losses]
        return {
            "folder": str(self.folder),
            "steps": self.steps,
            "tokens": self.tokens,
            "losses": losses,
            "curve": [dict(row) for row in self.curve],
            "certificate": self.certificate,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the short table: quantity, value with its unit; the certificate has one of its own."""
        table = [("steps", f"{self.steps:,}"), ("tokens", f"{self.tokens:,}")]
        if self.losses:
            first, last = self.losses[0], self.losses[-1]
            name = "training loss, with router losses" if self.is_regularised else "training loss"
            table.append((name, f"{first[1]:.4f} (to step {first[0]:,}) -> {last[1]:.4f}"))
        titles = {
            "eval/loss": "held-out loss",
            "eval/kl": "KL(dense || MoE), held-out",
            CURVE[1]: "1 - cosine to dense",
        }
        for key, title in titles.items():
            values = [row[key] for row in self.curve if key in row]
            if values:
                form = ".4f" if key == "eval/loss" else ".2g"
                table.append((title, f"{values[0]:{form}} -> {values[-1]:{form}}"))
        return table


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    adjust: bool = False,
    certify: bool = True,
    say: Say = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Trained:
    """Train by a recipe; under `torchrun` in all processes.

    `recipe.out` then holds `model`, a plain checkpoint like the one it began from, `recipe.json`, `log.jsonl`, scalars
    for TensorBoard, and the last checkpoints. What was interrupted goes on from the last complete one, in a single
    process to the same bits as if nothing had happened. On CPUs this process keeps the memory that steps free
    (`moesaic.allocator`).

    Args:
        resume: go on with an interrupted run; of a finished one, say what came of it. overwrite: begin anew in the
            folder of an earlier run, which is kept until the new one has made a step. adjust: with resume, go on though
            learning rate, warm-up, weight decay, clip or precision are others than before, as when numbers stopped
            being finite.
        certify: compare with the dense parent at the end; the KL curve is measured all the same.
        say: told of what is amiss, and how it goes now and then. progress: told how far it is.

    Raises:
        MoesaicError: for every fault of recipe, model or data.
    """
    ranks = join()
    settings.check(recipe)
    if adjust and not resume:
        raise TrainingError(
            "train: adjust must go with resume, whose values it changes. Got it alone. Pass --resume, too, or leave "
            "--adjust out."
        )
    folder = resolve(recipe.model, progress=say if ranks.rank == 0 else None)
    source = DenseCheckpoint.open(folder)
    out = recipe.out.expanduser().resolve()
    is_new = not out.exists()

    def begin() -> None:
        now = record(recipe, fingerprint(source), ranks.size)
        settle(out, now, resume=resume, overwrite=overwrite, adjust=adjust)

    with ExitStack() as held:  # process 0 holds the folder for all
        _together(ranks, lambda: claim(out, folder, held))
        _together(ranks, begin)
        if (out / MODEL).is_dir():
            return _told(out)
        from moesaic.training.run import Place, run  # noqa: PLC0415  # imports transformers

        try:
            parent = _parent(recipe, folder, say if ranks.rank == 0 else lambda _: None)
            finished = run(recipe, Place(folder, parent, out, resume), ranks, say, _forgetting(out, progress))
        except (MoesaicError, ValueError):
            if ranks.rank == 0:
                withdraw(out, is_new)
            raise
        finally:
            if ranks.rank == 0:
                restore(out)
        _publish(finished, source, parent if certify else None, out, ranks, say, progress)
    return _told(out)


def _forgetting(out: Path, progress: Progress) -> Progress:
    """Return a progress that removes the run which was set aside after the first step."""

    def told(stage: str, done: int, total: int) -> None:
        if done:
            forget(out)
        progress(stage, done, total)

    return told


def _together(ranks: Ranks, work: Callable[[], None]) -> None:
    """Let process 0 work, and all fail where it does."""
    problem = ""
    if ranks.rank == 0:
        try:
            work()
        except TrainingError as error:
            problem = str(error)
    if problem := ranks.told(problem):
        raise TrainingError(problem)


def _parent(recipe: Recipe, folder: Path, say: Say) -> Path | None:
    """Return the dense model's folder: the one given, or the one that moesaic.json names, if it is still the same."""
    if recipe.parent is not None:
        return resolve(recipe.parent, progress=say)
    if not (folder / RECORD).is_file():
        return None
    source = read_json(folder / RECORD).get("source")
    if not source:
        return None
    name = str(source["name"])
    beside = [path for path in (folder.parent / name, Path(name)) if (path / "config.json").is_file()]
    try:
        found = beside[0] if beside else resolve(name, progress=say)
        checkpoint = DenseCheckpoint.open(found)
        if audit(checkpoint, min(os.cpu_count() or 1, 8), lambda _: None) == source["sha256"]:
            return found
        why = f"{found} holds other weights"
    except MoesaicError:
        why = "it is not on this machine"
    say(f"the dense parent, {name}, is not used: {why}. Give its folder as parent for the KL curve and a certificate.")
    return None


def _publish(
    finished: Finished,
    source: DenseCheckpoint,
    parent: Path | None,
    out: Path,
    ranks: Ranks,
    say: Say,
    progress: Progress,
) -> None:
    """Write the trained model beside its place, certify it, and give it its name."""
    beside = out / f"{MODEL}.partial"
    if ranks.rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
    ranks.wait()
    write_model(finished.model, finished.config, source, beside, ranks, finished.prepared.save)
    if ranks.rank == 0:
        made = _record(source.folder, out, finished)
        made["training"]["certificate"] = _certificate(parent, source, beside, made, say, progress)
        write_json(beside / RECORD, made)
        _card(source.folder, beside, made["training"])
        beside.rename(out / MODEL)
    ranks.wait()


def _record(source: Path, out: Path, finished: Finished) -> dict[str, Any]:
    """Return moesaic.json: that of the folder training began with, and what training did."""
    before = read_json(source / RECORD) if (source / RECORD).is_file() else {"moesaic": __version__}
    rows = list(Logbook(out / LOG, writes=False).rows())
    training = {
        **read_json(out / NAME),
        "moesaic": __version__,
        "steps": finished.steps,
        "tokens": finished.tokens,
        "curve": _curve(rows),
    }
    # What the conversion promised holds no longer; its certificate stays, as that of step 0.
    promise = {"preserves_function": False} if "preserves_function" in before else {}
    return {**before, **promise, "training": training}


def _certificate(
    parent: Path | None, source: DenseCheckpoint, beside: Path, made: Mapping[str, Any], say: Say, progress: Progress
) -> dict[str, Any] | None:
    if parent is None or "spec" not in made:
        return None
    if (now := read_json(beside / "config.json")["architectures"]) != source.config["architectures"]:
        say(f"no certificate after training: the task made a {now[0]} of the model, which its dense parent is not.")
        return None
    try:
        found: Certificate | SplicedCertificate = certify(
            parent, beside, record=made, progress=lambda done, total: progress("certify", done, total)
        )
    except MoesaicError as error:
        say(f"no certificate after training: {error}")
        return None
    return found.to_json()


def _card(source: Path, to: Path, training: Mapping[str, Any]) -> None:
    """Write README.md: the source's own but for its report, which shows the model before, and what training did."""
    card = source / "README.md"
    text = without_report(card.read_text(encoding="utf-8")) if card.is_file() else BARE.format(name=to.parent.name)
    lines = [f"{training['steps']:,} steps, {training['tokens']:,} tokens, by moesaic {training['moesaic']}."]
    if training["certificate"]:
        lines += ["", "| dense against MoE, after training | |", "|---|---|"]
        rows = training["certificate"]["summary"].items()
        lines += ["| {} | {} |".format(*(cell.replace("|", "\\|") for cell in row)) for row in rows]
    (to / "README.md").write_text(text.rstrip() + "\n\n## Training\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [
        {key: row[key] for key in ("step", *CURVE) if key in row} for row in rows if any(key in row for key in CURVE)
    ]


def _told(out: Path) -> Trained:
    """Return what came of a finished run, from its folder."""
    training = json.loads((out / MODEL / RECORD).read_text(encoding="utf-8"))["training"]
    rows = list(Logbook(out / LOG, writes=False).rows())
    losses = tuple((row["step"], row["loss"]) for row in rows if "loss" in row)
    recipe = training["recipe"]
    return Trained(
        folder=out / MODEL,
        certificate=training["certificate"],
        curve=tuple(_curve(rows)),
        losses=losses,
        steps=training["steps"],
        tokens=training["tokens"],
        is_regularised=bool(recipe["losses"] or recipe["teacher"]),
    )
