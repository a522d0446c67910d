"""COMET by a checkpoint that the user has: nothing is downloaded, and no pickle is run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from moesaic.errors import EvaluationError
from moesaic.evaluation.intervals import Metric
from moesaic.lazy import np, torch

INSTALL = "Install it: pip install 'moesaic[comet]'."


@dataclass(frozen=True)
class Comet:
    """Scores translations.

    Args:
        model: of the package unbabel-comet. name: of its folder, for the signature.
    """

    model: Any
    name: str

    def scores(self, sources: Sequence[str], said: Sequence[str], references: Sequence[str]) -> list[float]:
        """Return the score of each translation, about 0 to 1."""
        rows = [{"src": src, "mt": mt, "ref": ref} for src, mt, ref in zip(sources, said, references, strict=True)]
        gpus = int(torch.cuda.is_available())
        found = self.model.predict(rows, batch_size=max(len(rows), 1), gpus=gpus, progress_bar=False)
        return [float(score) for score in found.scores]

    def metric(self) -> Metric:
        """Return the mean of records that hold the score in `comet`."""

        def mean(sums: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):
                found: np.ndarray = sums[..., 0] / sums[..., 1]
            return found

        return Metric("COMET", lambda row: (row["comet"], 1), mean, digits=4, signature=self.name)


def open_comet(path: str | Path) -> Comet:
    """Load a COMET model from its folder (`hparams.yaml`, `checkpoints/model.ckpt`) or its checkpoint.

    Checkpoints are pickles, which can run anything, so only tensors and plain values are read out of one; a checkpoint
    that holds more is refused. The encoder that its `hparams.yaml` names must be in the cache of Hugging Face.

    Reference: Rei et al. 2020, COMET, arXiv 2009.09025.

    Raises:
        EvaluationError: where files or the package are missing, or the checkpoint is unsafe or of another model.
    """
    import yaml  # noqa: PLC0415  # needed here only

    given = Path(path).expanduser()
    checkpoint = given / "checkpoints" / "model.ckpt" if given.is_dir() else given
    settings = checkpoint.parent.parent / "hparams.yaml"
    for file in (checkpoint, settings):
        if not file.is_file():
            raise EvaluationError(
                f"{given}: a COMET model must have hparams.yaml and checkpoints/model.ckpt. Got no {file.name}. Pass "
                "the folder that Unbabel gives out."
            )
    weights = _weights(checkpoint)
    classes = _classes()
    try:
        hparams = dict(yaml.safe_load(settings.read_text(encoding="utf-8")))
        made = classes[hparams["class_identifier"]]
        wanted = inspect.signature(made.__init__).parameters
        hparams |= {"load_pretrained_weights": False, "local_files_only": True}
        model = made(**{name: value for name, value in hparams.items() if name in wanted})
        missing = model.load_state_dict(weights, strict=False).missing_keys
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise EvaluationError(
            f"{given}: the COMET model must load from what is on disk. It does not: {type(error).__name__}: {error}. "
            "Fetch the encoder that hparams.yaml names first, or take another model."
        ) from error
    if missing:
        raise EvaluationError(f"{given}: the checkpoint must hold every weight. It lacks {missing[0]}. Fetch it again.")
    return Comet(model.eval(), given.name)


def _weights(checkpoint: Path) -> Mapping[str, Any]:
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return dict(found["state_dict"])
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{checkpoint}: a COMET checkpoint must hold its state_dict, tensors and plain values alone, as a pickle "
            f"of anything else can run code. Got: {str(error).partition(chr(10))[0]} Save "
            "{'state_dict': ...} of it where you trust it."
        ) from error


def _classes() -> Mapping[str, Any]:
    try:
        from comet.models import str2model  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415  # an extra
    except ImportError:
        raise EvaluationError(f"COMET: it must be computed by unbabel-comet. It is not installed. {INSTALL}") from None
    found: Mapping[str, Any] = str2model
    return found
