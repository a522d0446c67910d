"""What a page is made of, read from disk and checked: a diagnosis, a model's certificate, a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic.checkpoints.strict_json import parse_json
from moesaic.errors import ReportError, brief, listing
from moesaic.training.logbook import NAME as LOG
from moesaic.training.logbook import Logbook
from moesaic.training.record import NAME as RECIPE

DIAGNOSIS, REPORT = "moesaic.diagnosis/1", "moesaic.report/1"
CERTIFICATE = "moesaic.json"


def diagnosis_of(file: Path) -> dict[str, Any]:
    """Return the diagnosis in a file: one that was saved, or the report.json of an earlier page.

    Raises:
        ReportError: where it holds none.
    """
    found = _json(file)
    return checked(found.get("diagnosis") if found.get("schema") == REPORT else found, str(file))


def checked(diagnosis: Any, name: str) -> dict[str, Any]:
    """Return a diagnosis that has what a page can't do without.

    Raises:
        ReportError: naming everything that is missing or does not fit.
    """
    schema = diagnosis.get("schema") if isinstance(diagnosis, Mapping) else None
    if schema != DIAGNOSIS:
        raise ReportError(
            f"{name}: a diagnosis must have the schema '{DIAGNOSIS}'. Got {brief(schema)}. Make it by moesaic.diagnose."
        )
    faults = list(_faults(diagnosis))
    if faults:
        raise ReportError(
            f"{name}: a diagnosis must be whole. Got:\n{listing(faults, 5)}\nMake it anew by moesaic.diagnose."
        )
    return dict(diagnosis)


def _faults(diagnosis: Mapping[str, Any]) -> Iterator[str]:
    layers = diagnosis.get("layers")
    if not isinstance(layers, list) or not layers:
        yield "no layer with experts"
        return
    for place, one in enumerate(layers):
        missing = [key for key in ("path", "number", "experts", "top_k", "load") if key not in one]
        if missing:
            yield f"layer {place} without {', '.join(missing)}"
        elif len(one["load"]) != one["experts"]:
            yield f"layer {place} with {one['experts']} experts and the load of {len(one['load'])}"


def certificate_of(folder: Path) -> dict[str, Any] | None:
    """Return what moesaic.json says of a model: how it was made, and its newest certificate; None without the file.

    Raises:
        ReportError: where the file can't be read.
    """
    file = folder / CERTIFICATE
    if not file.is_file():
        return None
    said = _json(file)
    training = said.get("training") or {}
    newest = training.get("certificate") or said.get("certificate") or {}
    spec = said.get("spec") or {}
    made = {
        "source": (said.get("source") or {}).get("name"),
        "target": said.get("target"),
        "experts": f"{spec['num_experts']}, top-{spec.get('top_k')}" if "num_experts" in spec else None,
        "expert init": (said.get("experts") or {}).get("method"),
        "router init": (said.get("router") or {}).get("method"),
        "trained": f"{training['steps']:,} steps, {training['tokens']:,} tokens" if "tokens" in training else None,
    }
    return {
        "made": {key: value for key, value in made.items() if value},
        "when": "after training" if training.get("certificate") else "step 0",
        "summary": newest.get("summary") or {},
        "layers": newest.get("layers") or [],
    }


def run_of(folder: Path, model: str | Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Return a run: its model, steps, stages and the rows of its log.

    Args:
        model: folder or name that the page is of; the run must start from it or end in it.
        may_be_empty: let the log have no row yet.

    Raises:
        ReportError: where the folder is no run, its log is empty, or it is of another model.
    """
    recipe_file = folder / RECIPE
    if not recipe_file.is_file():
        raise ReportError(f"{folder}: a run must have a {RECIPE}. Got none. Name the --out of a `moesaic train`.")
    said = _json(recipe_file)
    recipe = said.get("recipe") or {}
    if not _is_of(folder, said, Path(model)):
        raise ReportError(
            f"{folder}: a run must start from the model of the page, or end in it. Got a run of "
            f"{brief(recipe.get('model'))}, and the page is of '{model}'. Name that model, or the run's folder `model`."
        )
    rows = list(Logbook(folder / LOG, writes=False).rows())
    if not rows and not may_be_empty:
        raise ReportError(
            f"{folder}: a run must have rows in {LOG}. Got none. Wait for its first step, or pass --watch."
        )
    planned = (recipe.get("training") or {}).get("steps") or 0
    stages = [{"until": one.get("until"), "frozen": one.get("frozen") or []} for one in recipe.get("stages") or []]
    steps = max([planned, *(row["step"] for row in rows)])
    return {"folder": folder.name, "model": str(recipe.get("model")), "steps": steps, "stages": stages, "rows": rows}


def _is_of(folder: Path, record: Mapping[str, Any], model: Path) -> bool:
    """Tell whether a run starts from a model or ends in it; a folder that was moved is told by its fingerprint."""
    begun = Path(str((record.get("recipe") or {}).get("model")))
    if not model.exists():  # of a saved diagnosis only the name is known
        return model.name in (begun.name, "model")
    if model.resolve() in (begun.resolve(), (folder / "model").resolve()):
        return True
    file = model / CERTIFICATE
    trained = (_json(file).get("training") or {}) if file.is_file() else {}
    return bool(trained) and all(trained.get(key) == record.get(key) for key in ("fingerprint", "recipe"))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_bytes())
    except (ValueError, json.JSONDecodeError) as error:
        raise ReportError(f"{file}: it must be JSON. Got {error}. Write it anew.") from None
    if not isinstance(found, dict):
        raise ReportError(f"{file}: it must be a JSON object. Got {brief(found)}. Write it anew.")
    return found
