"""What a run leaves behind: finished after a kill to the same bits, with adapters, tied weights and chat templates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.integration.pico import save_text
from tests.integration.training_killed import rows
from tests.integration.training_pico import VOCABULARY, recipe, save_mixtral
from torch.testing import assert_close

from moesaic.checkpoints.dense import read_json
from moesaic.errors import TrainingError
from moesaic.losses.loss_free_bias import LossFreeBias
from moesaic.running import train
from moesaic.training.checkpointing import checkpoints

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


def test_a_resumed_run_with_adapters_has_the_biases_of_its_balancer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Glm4MoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
        n_shared_experts=1, first_k_dense_replace=1, max_position_embeddings=64,
    )  # fmt: skip
    model = tmp_path / "moe"
    transformers.Glm4MoeForCausalLM(config).save_pretrained(model)
    given = {**PLAIN, "steps": 7, "save_every": 3, "keep": 9, "lora": 4, "losses": (LossFreeBias(0.1),)}
    made = train(recipe(model, tmp_path / "run", **given))
    made.folder.rename(tmp_path / "before")
    for last in checkpoints(tmp_path / "run")[1:]:
        shutil.rmtree(last)
    again = train(recipe(model, tmp_path / "run", **given), resume=True)
    found, before = weights(again.folder), weights(tmp_path / "before")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert found[bias].abs().max() > 0
    assert_close(found, before, rtol=0, atol=0)  # the same operations in the same order


def test_further_chat_templates_are_carried(tmp_path: Path) -> None:
    model = save_mixtral(tmp_path / "moe")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    made = train(recipe(model, tmp_path / "run", **PLAIN))
    assert (made.folder / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ messages }}"


def test_infinities_that_config_json_spells_out_are_kept(tmp_path: Path) -> None:
    """As in Granite 4's `time_step_limit`; JSON has no number for them."""
    save_text(tmp_path / "granite4", "granite4")
    made = train(recipe(tmp_path / "granite4", tmp_path / "run", **{**PLAIN, "losses": ()}))
    before, after = (read_json(folder / "config.json") for folder in (tmp_path / "granite4", made.folder))
    assert before["time_step_limit"][1] == {"__float__": "Infinity"}
    assert after == before
