"""COMET models are opened without running what their pickles hold, and a missing package is named."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.errors import EvaluationError
from moesaic.evaluation.comet import open_comet


class Evil:
    """What writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def comet(folder: Path, content: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hparams.yaml").write_text("class_identifier: regression_metric\npretrained_model: none\n")
    torch.save(content, folder / "checkpoints" / "model.ckpt")
    return folder


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    evil = comet(tmp_path / "evil", {"state_dict": {}, "callbacks": Evil(tmp_path / "ran")})
    with pytest.raises(EvaluationError, match="can run code"):
        open_comet(evil)
    assert not (tmp_path / "ran").exists()


def test_what_lacks_weights_or_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="must hold its state_dict"):
        open_comet(comet(tmp_path / "other", {"weights": torch.ones(2)}))
    with pytest.raises(EvaluationError, match=r"Got no model\.ckpt"):
        open_comet(tmp_path)
    with pytest.raises(EvaluationError, match=r"^wmt22: .*Got no wmt22"):
        open_comet("wmt22")


@pytest.mark.skipif(find_spec("comet") is not None, reason="the package is there")
@pytest.mark.parametrize("whole", [True, False])
def test_a_missing_package_names_the_command(whole: bool, tmp_path: Path) -> None:
    folder = comet(tmp_path / "model", {"state_dict": {"weight": torch.ones(2)}})
    with pytest.raises(EvaluationError, match=r"pip install 'moesaic\[comet\]'"):
        open_comet(folder if whole else folder / "checkpoints" / "model.ckpt")
