"""What a run leaves behind: finished after a kill to the same bits, with adapters, tied weights and chat templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.integration.training_killed import rows
from tests.integration.training_pico import recipe, save_mixtral
from torch.testing import assert_close

from moesaic.errors import TrainingError
from moesaic.running import train

PLAIN = {"teacher": None, "stages": (), "steps": 4, "save_every": 0, "accumulate": 1, "evaluate_every": 2}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.parametrize("changes", [{}, {"lora": 2}])
def test_a_run_killed_behind_its_last_checkpoint_takes_no_further_step(
    changes: dict[str, object], tmp_path: Path
) -> None:
    model = save_mixtral(tmp_path / "moe")
    given = {**PLAIN, "schedule": "constant", "warmup": 0.0, **changes}
    made = train(recipe(model, tmp_path / "run", **given))
    log = rows(tmp_path / "run")
    made.folder.rename(tmp_path / "before")
    again = train(recipe(model, tmp_path / "run", **given), resume=True)
    assert (again.steps, again.tokens, again.losses) == (made.steps, made.tokens, made.losses)
    assert rows(tmp_path / "run") == log
    assert_close(weights(again.folder), weights(tmp_path / "before"), rtol=0, atol=0)  # nothing has trained


def test_tied_weights_stay_one_tensor_in_the_dtype_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of `cpu` makes a copy, as that of a tensor on a GPU does."""
    model = save_mixtral(tmp_path / "moe", tie_word_embeddings=True)
    save_file({name: one.bfloat16() for name, one in weights(model).items()}, model / "model.safetensors")
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    made = train(recipe(model, tmp_path / "run", **PLAIN), certify=False)
    found = weights(made.folder)
    assert found.keys() == weights(model).keys()
    assert {one.dtype for one in found.values()} == {torch.bfloat16}


def test_adapters_stand_on_experts_that_train(tmp_path: Path) -> None:
    model = save_mixtral(tmp_path / "moe")
    made = train(recipe(model, tmp_path / "run", **PLAIN, lora=4, frozen=("model.layers.0",)))
    before, after = weights(model), weights(made.folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layers.1" in name and ".experts." in name}
    with pytest.raises(TrainingError, match=r"adapters must have experts or linears that train.* All are frozen"):
        train(recipe(model, tmp_path / "none", **PLAIN, lora=4, frozen=("model.layers",)))
