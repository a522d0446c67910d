"""Schedules as plain values, and which parameter has which role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from moesaic.errors import ObservationError, TrainingError
from moesaic.modeling.spliced import MoELayer
from moesaic.training.freezing import Freezing
from moesaic.training.roles import parts
from moesaic.training.stages import (
    ROLES,
    ROUTED,
    Stage,
    ends,
    experts_only,
    router_only,
    router_warmup,
    stage_at,
    two_stages,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16},
    "GraniteMoeShared": {"num_local_experts": 4, "shared_intermediate_size": 16},
    "GptOss": {"num_local_experts": 4},
    "Gemma4Text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24, "enable_moe_block": True},
    "NemotronH": {
        "layers_block_type": ["moe", "moe"], "n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 1,
        "moe_shared_expert_intermediate_size": 16, "topk_group": 1,
    },
}  # fmt: skip
WANTED: dict[str, dict[str, str]] = {
    "Mixtral": {"gate.weight": "router", "gate_up_proj": "gate up", "down_proj": "down"},
    "Qwen2Moe": {"mlp.gate.weight": "router", "shared_expert.gate_proj.weight": "shared", "q_proj.weight": "rest",
                 "shared_expert_gate.weight": "shared", "experts.down_proj": "down"},
    "GraniteMoeShared": {"router.weight": "router", "shared_mlp.input_linear.weight": "shared",
                         "experts.gate_up_proj": "gate up", "embed_tokens.weight": "rest"},
    "GptOss": {"router.weight": "router", "router.bias": "router", "gate_up_proj_bias": "gate up",
               "down_proj_bias": "down", "sinks": "rest"},
    "Gemma4Text": {"router.scale": "router", "per_expert_scale": "router", "mlp.down_proj.weight": "shared",
                   "experts.down_proj": "down", "pre_feedforward_layernorm_2.weight": "rest"},
    "NemotronH": {"experts.up_proj": "up", "experts.down_proj": "down", "shared_experts.up_proj.weight": "shared",
                  "gate.weight": "router"},
}  # fmt: skip


def on_meta(family: str) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family]})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_of_stock_models(family: str) -> None:
    model = on_meta(family)
    found = {part.name: part for part in parts(model)}
    assert list(found) == [name for name, _ in model.named_parameters()]
    for ending, roles in WANTED[family].items():
        own = [part for name, part in found.items() if name.endswith(ending)]
        assert own, ending
        assert {" ".join(part.roles) for part in own} == {roles}, ending


def test_only_stacks_of_two_halves_have_halves() -> None:
    assert {part.halves for part in parts(on_meta("Mixtral")) if "gate" in part.roles} == {True}
    assert not any(part.halves for part in parts(on_meta("GptOss")))  # interleaved
    assert not any(part.halves for part in parts(on_meta("NemotronH")))


def site(**changes: Any) -> dict[str, Any]:
    plain = {"hidden": 8, "num_experts": 4, "expert_size": 6, "layout": "plain", "act": "gelu", "top_k": 2}
    return {**plain, "normalize_gates": True, "first_bias": True, "last_bias": True, "shared_size": 6, **changes}


@pytest.mark.parametrize("layout", ["plain", "gated"])
def test_roles_of_a_spliced_layer(layout: str) -> None:
    model = torch.nn.ModuleDict({"moe": MoELayer(site(layout=layout))})
    found = {part.name.removeprefix("moe."): " ".join(part.roles) for part in parts(model)}
    first, roles = ("up_proj", "up") if layout == "plain" else ("gate_up_proj", "gate up")
    shared = {name: "shared" for name in found if name.startswith("shared_expert.")}
    assert len(shared) == (4 if layout == "plain" else 6)
    assert found == {
        "router.weight": "router",
        f"experts.{first}": roles,
        f"experts.{first}_bias": roles,
        "experts.down_proj": "down",
        "experts.down_proj_bias": "down",
        **shared,
    }


def test_adapters_have_the_role_of_what_they_adapt() -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
    )
    model = peft.get_peft_model(
        transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4)), lora
    )
    trained = {part.name: " ".join(part.roles) for part in parts(model) if part.parameter.requires_grad}
    layer = "base_model.model.model.layers.0."
    assert {name.removeprefix(layer): role for name, role in trained.items() if layer in name and "lora_A" in name} == {
        "self_attn.q_proj.lora_A.default.weight": "rest",
        "mlp.gate.lora_A.default.weight": "router",
        "mlp.experts.base_layer.lora_A.default.weight": "gate up",
        "mlp.experts.lora_A.default.weight": "down",
    }
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    freezing = Freezing(model, two_stages(0.5), 2)
    freezing.at(0)
    held = {name for name, parameter in model.named_parameters() if not parameter.requires_grad} - frozen
    assert held == {name for name, role in trained.items() if role == "gate up"}
    freezing.at(1)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    with pytest.raises(TrainingError, match="gate and up must be halves"):
        Freezing(model, two_stages(0.5, "gate"), 2)
    without_routers = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(model.unload(), without_routers)
    with pytest.raises(TrainingError, match="some parameter must train"):
        Freezing(model, router_only(), 2)


def test_unknown_experts_and_models_without_any() -> None:
    model = on_meta("Mixtral")
    model.model.layers[1].mlp.experts.sideways_proj = torch.nn.Parameter(torch.empty(4, 2, 2, device="meta"))
    with pytest.raises(ObservationError, match=r"layers\.1\.mlp\.experts: .* Got 'sideways_proj'"):
        parts(model)
    with pytest.raises(ObservationError, match="Linear"):
        parts(torch.nn.Linear(2, 2))


def test_named_schedules() -> None:
    assert two_stages() == (Stage(0.1, frozenset({"gate", "up"})), Stage(1.0))
    assert two_stages(0.05, "gate")[0] == Stage(0.05, frozenset({"up", "down"}))
    assert two_stages(0.05, "up")[0] == Stage(0.05, frozenset({"gate", "down"}))
    assert router_only() == (Stage(1.0, ROLES - {"router"}),)
    assert experts_only() == (Stage(1.0, ROLES - ROUTED),)
    assert router_warmup(0.2) == (Stage(0.2, ROLES - {"router"}), Stage(1.0))


@pytest.mark.parametrize(
    ("tau", "total", "first"), [(0.1, 100, 10), (0.1, 25, 3), (0.1, 24, 2), (0.1, 3, 1), (0.05, 1, 1), (0.001, 10, 1)]
)
def test_boundary_is_tau_of_the_steps_rounded_half_up_and_one_at_least(tau: float, total: int, first: int) -> None:
    stages = two_stages(tau)
    assert ends(stages, total)[0] == first
    frozen = [bool(stage_at(stages, total, step).frozen) for step in range(total)]
    assert frozen == [step < first for step in range(total)]
    assert stage_at(stages, total, total + 5) is stages[-1]


def test_each_of_many_stages_comes_where_there_are_steps() -> None:
    stages = [Stage(0.01, frozenset({"up"})), Stage(0.02, frozenset({"down"})), Stage(1.0)]
    assert ends(stages, 10) == (1, 2, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: two_stages(0.0), r"two_stages: tau .* Got 0\.0"),
        (lambda: two_stages(1.0), r"two_stages: tau .* Got 1\.0"),
        (lambda: two_stages(0.1, "middle"), r"placement .* Got 'middle'"),  # type: ignore[arg-type]
        (lambda: router_warmup(-1), r"router_warmup: tau .* Got -1"),
        (lambda: Stage(0.0), r"until .* Got 0\.0"),
        (lambda: Stage(1.5), r"until .* Got 1\.5"),
        (lambda: Stage(float("nan")), "until .* Got nan"),
        (lambda: Stage(1.0, frozenset({"rooter"})), "Got 'rooter'. Did you mean 'router'"),  # type: ignore[arg-type]
        (lambda: Stage(1.0, ROLES), "something must train"),
        (lambda: ends((), 10), r"the last must end at 1\. Got \[\]"),
        (lambda: ends((Stage(0.5),), 10), r"the last must end at 1\. Got \[0\.5\]"),
        (lambda: ends((Stage(0.5), Stage(0.5), Stage(1.0)), 10), r"each must end after .* Got \[0\.5, 0\.5, 1\.0\]"),
        (lambda: ends((Stage(1.0),), 0), "total_steps .* Got 0"),
        (lambda: stage_at((Stage(1.0),), 5, -1), "step .* Got -1"),
    ],
)
def test_what_is_no_schedule(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_one_of_gate_and_up_needs_halves() -> None:
    with pytest.raises(TrainingError, match=r"experts\.gate_up_proj: gate and up must be halves .* \[4, 32, 48\]"):
        Freezing(on_meta("GptOss"), two_stages(0.1, "gate"), 10)
    Freezing(on_meta("GptOss"), two_stages(0.1), 10)
