"""Stock mixture-of-experts models give the same outputs and gradients with `experts_implementation="moesaic"`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from moesaic.modeling import fast, stock

ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
"""Float64 sums of a few dozen terms of order 1, taken in another order."""
THROUGH_NORMS = {"rtol": 1e-4, "atol": 1e-6}
"""Norms compute in float32 whatever the weights: a difference in the last digit of float64 may round the other way."""
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain layout": ("Mixtral", {"num_local_experts": 4}),
    "shared expert": (
        "Qwen2Moe",
        {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "odd sizes": ("Qwen3Moe", {"num_experts": 5, "moe_intermediate_size": 21}),
    "biased, transposed, interleaved": ("GptOss", {"num_local_experts": 4}),
    "own gate": ("MiniMaxM3VLText", {"num_local_experts": 4}),
    "without a gate": (
        "NemotronH",
        {"layers_block_type": ["full_attention", "moe"], "n_routed_experts": 4, "moe_intermediate_size": 24,
         "moe_shared_expert_intermediate_size": 24, "n_group": 1, "topk_group": 1},
    ),
}  # fmt: skip


def tiny(name: str, **changes: Any) -> transformers.PreTrainedModel:
    family, sizes = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **sizes, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    for parameter in model.parameters():  # no bias at zero, no expert so small that errors vanish
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def outputs_and_gradients(
    model: transformers.PreTrainedModel, implementation: str, run: Callable[[], torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    model.set_experts_implementation(implementation)
    y = run()
    return y, *torch.autograd.grad(
        y.square().mean(), list(model.parameters()), allow_unused=True, materialize_grads=True
    )


def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    return model(input_ids=torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))).logits


def experts_of(model: transformers.PreTrainedModel) -> torch.nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("experts"))


@pytest.fixture(autouse=True)
def _registered() -> None:
    stock.register()
    stock.register()  # twice is once


@pytest.mark.parametrize("name", MODELS)
def test_experts_equal_eager(name: str) -> None:
    model = tiny(name)
    experts = experts_of(model)
    x, weights = torch.randn(9, 32, dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64)
    ids = torch.rand(9, 4).topk(2).indices

    def run() -> torch.Tensor:
        return experts(x, ids, weights)

    want = outputs_and_gradients(model, "eager", run)
    assert_close(outputs_and_gradients(model, "moesaic", run), want, **ROUNDING)


@pytest.mark.parametrize("name", MODELS)
def test_models_equal_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(stock, "routed_experts", lambda *a, **k: calls.append(1) or fast.routed_experts(*a, **k))
    model = tiny(name)
    want = outputs_and_gradients(model, "eager", lambda: logits(model))
    assert not calls
    assert_close(outputs_and_gradients(model, "moesaic", lambda: logits(model)), want, **THROUGH_NORMS)
    assert calls


def test_loads_with_the_implementation_by_name(tmp_path: Path) -> None:
    tiny("plain layout").save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="moesaic")
    assert model.config._experts_implementation == "moesaic"


@pytest.mark.parametrize("says", ["_is_expert_parallel", "has_post_expert_norm"])
def test_leaves_to_transformers_what_it_can_not_do(says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ids beyond the last expert as another rank's, or a norm before the gate, the result is the library's own."""
    model = tiny("plain layout").float()
    experts = experts_of(model)
    setattr(experts, says, True)
    experts.post_expert_norm = torch.nn.LayerNorm(32)
    x, weights = torch.randn(5, 32), torch.rand(5, 2)
    ids = torch.tensor([[0, 1], [2, 3], [0, 3], [1, 0], [3, 2]])
    if says == "_is_expert_parallel":
        ids[1, 0] = 4
        weights[1, 0] = 0
    results = []
    for implementation in ("grouped_mm", "moesaic"):
        model.set_experts_implementation(implementation)
        results.append(experts(x, ids, weights))
    assert_close(results[1], results[0], rtol=0, atol=0)  # the same function


def test_checkpointing_in_a_model_changes_nothing() -> None:
    model = tiny("plain layout").train()
    want = outputs_and_gradients(model, "moesaic", lambda: logits(model))
    model.gradient_checkpointing_enable()
    assert_close(outputs_and_gradients(model, "moesaic", lambda: logits(model)), want, rtol=0, atol=0)


def test_generates_the_same_tokens() -> None:
    model = tiny("shared expert").eval()
    tokens = []
    for implementation in ("eager", "moesaic"):
        model.set_experts_implementation(implementation)
        tokens.append(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False, pad_token_id=0))
    assert tokens[0].tolist() == tokens[1].tolist()
