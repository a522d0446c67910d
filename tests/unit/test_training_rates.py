"""Learning rates of a role's own."""

from __future__ import annotations

import pytest
import torch
import transformers

from moesaic.errors import TrainingError
from moesaic.training.rates import set_apart


def mixtral() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def test_roles_take_their_rates_and_keep_what_else_their_group_says() -> None:
    model = mixtral()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-5,
    )
    set_apart(optimizer, model, {"router": 1e-2, "down": 1e-3})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(one)]: group["lr"] for group in optimizer.param_groups for one in group["params"]}
    own = {"mlp.gate.weight": 1e-2, "experts.down_proj": 1e-3}
    said = {name: next((rate for end, rate in own.items() if name.endswith(end)), 1e-5) for name in names.values()}
    assert rates == said
    assert set(said.values()) == {1e-2, 1e-3, 1e-5}
    assert optimizer.param_groups[-1]["weight_decay"] == 0.1


def test_frozen_routers_are_refused() -> None:
    model = mixtral()
    rest = [parameter for name, parameter in model.named_parameters() if "gate.weight" not in name]
    with pytest.raises(TrainingError, match="must have such parameters that train"):
        set_apart(torch.optim.AdamW(rest), model, {"router": 1e-2})
