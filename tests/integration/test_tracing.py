"""FFNs are found where they are, with their layout and activation, in models of every kind; and nowhere else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, BertForMaskedLM, PreTrainedConfig, PreTrainedModel, ViTConfig
from transformers.activations import ACT2FN

from moesaic.errors import ArchitectureError
from moesaic.modeling.matching import LEARNED, activations, match
from moesaic.modeling.recording import recording
from moesaic.modeling.survey import twin_of
from moesaic.modeling.tiny import scales, tiny_config
from moesaic.modeling.tracing import find, model_class, trace
from moesaic.modeling.twin import build, randomize
from moesaic.sites import Site

Kinds = dict[tuple[str, str, str, int, int], int]
"""{(tower, layout, act, D, F): number of layers}"""


def kinds(config: PreTrainedConfig) -> Kinds:
    counts: Kinds = {}
    for s in find(config).sites:
        key = (s.tower, s.layout, s.act, s.hidden, s.width)
        counts[key] = counts.get(key, 0) + 1
    return counts


BIASED = {"first_bias": True, "last_bias": True}
T5_SIZES = {"d_model": 512, "d_ff": 2048, "num_layers": 6}
EXPECTED: list[tuple[str, dict[str, Any], Kinds]] = [
    (
        "clip",
        {},
        {
            ("text_model.encoder.layers", "plain", "quick_gelu", 512, 2048): 12,
            ("vision_model.encoder.layers", "plain", "quick_gelu", 768, 3072): 12,
        },
    ),
    (
        "siglip",
        {},
        {
            ("text_model.encoder.layers", "plain", "gelu_pytorch_tanh", 768, 3072): 12,
            ("vision_model.encoder.layers", "plain", "gelu_pytorch_tanh", 768, 3072): 12,
            ("vision_model.head.mlp", "plain", "gelu_pytorch_tanh", 768, 3072): 1,
        },
    ),
    ("vit", {}, {("layers", "plain", "gelu", 768, 3072): 12}),
    ("dinov2", {}, {("encoder.layer", "plain", "gelu", 768, 3072): 12}),
    ("dinov2", {"use_swiglu_ffn": True}, {("encoder.layer", "gated", "silu", 768, 2048): 12}),
    ("bert", {}, {("encoder.layer", "plain", "gelu", 768, 3072): 12}),
    (
        "whisper",
        {},
        {
            ("encoder.layers", "plain", "gelu", 384, 1536): 4,
            ("decoder.layers", "plain", "gelu", 384, 1536): 4,
        },
    ),
    (
        "m2m_100",
        {},
        {
            ("encoder.layers", "plain", "relu", 1024, 4096): 12,
            ("decoder.layers", "plain", "relu", 1024, 4096): 12,
        },
    ),
    (
        "t5",
        T5_SIZES,
        {("encoder.block", "plain", "relu", 512, 2048): 6, ("decoder.block", "plain", "relu", 512, 2048): 6},
    ),
    (
        "t5",
        {**T5_SIZES, "feed_forward_proj": "gated-gelu"},
        {("encoder.block", "gated", "gelu_new", 512, 2048): 6, ("decoder.block", "gated", "gelu_new", 512, 2048): 6},
    ),
    ("llama", {}, {("layers", "gated", "silu", 4096, 11008): 32}),
    ("gpt2", {}, {("h", "plain", "gelu_new", 768, 3072): 12}),
    ("modernbert", {}, {("layers", "fused", "gelu", 768, 1152): 22}),
    ("phi3", {}, {("layers", "fused", "silu", 3072, 8192): 32}),
    ("bloom", {}, {("h", "plain", "gelu_pytorch_tanh", 64, 256): 2}),
    ("opt", {}, {("decoder.layers", "plain", "relu", 768, 3072): 12}),
    (
        "llava",
        {},
        {
            ("vision_tower.encoder.layers", "plain", "quick_gelu", 1024, 4096): 24,
            ("language_model.layers", "gated", "silu", 4096, 11008): 32,
        },
    ),
    (
        "swin",
        {},
        {
            ("encoder.layers", "plain", "gelu", 96, 384): 2,
            ("encoder.layers", "plain", "gelu", 192, 768): 2,
            ("encoder.layers", "plain", "gelu", 384, 1536): 6,
            ("encoder.layers", "plain", "gelu", 768, 3072): 2,
        },
    ),
]


@pytest.mark.parametrize(
    ("model_type", "changes", "want"), EXPECTED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_ffn_of_the_real_model_is_named(model_type: str, changes: dict[str, Any], want: Kinds) -> None:
    assert kinds(AutoConfig.for_model(model_type, **changes)) == want


def test_sites_are_linears_of_the_real_model_in_its_order() -> None:
    config = AutoConfig.for_model("gpt2")
    sites = find(config).sites
    assert [s.layer for s in sites] == [(n,) for n in range(12)]
    assert sites[3] == Site(
        ("h.3.mlp.c_fc",), "h.3.mlp.c_proj", "plain", "gelu_new", 768, 3072, **BIASED, transposed=True
    )


@pytest.mark.parametrize("bias", [True, False])
def test_biases_are_those_of_the_real_model(bias: bool) -> None:
    sites = find(AutoConfig.for_model("llama", mlp_bias=bias, num_hidden_layers=2)).sites
    assert {(s.first_bias, s.last_bias, s.transposed) for s in sites} == {(bias, bias, False)}


@pytest.mark.parametrize("act", sorted(set(ACT2FN) - {"linear", *LEARNED}))
def test_activations_are_told_apart_by_value(act: str) -> None:
    found = {s.act for s in find(ViTConfig(hidden_act=act, num_hidden_layers=1)).sites}
    x = torch.linspace(-4, 4, 1000, dtype=torch.float64)
    # Several names stand for one function, and some formulas of it agree to 1e-6 only.
    torch.testing.assert_close(ACT2FN[found.pop()](x), ACT2FN[act](x), atol=1e-6, rtol=0)
    assert not found


def test_a_model_without_ffns_says_so() -> None:
    with pytest.raises(
        ArchitectureError, match=r"^ResNetModel: it must hold an FFN made of linears\. None was found\."
    ):
        find(AutoConfig.for_model("resnet"))


def test_a_norm_between_the_linears_is_named() -> None:
    with pytest.raises(ArchitectureError, match=r"layers\.0\.mlp\.down_proj: its input comes from BitNetRMSNorm"):
        find(AutoConfig.for_model("bitnet"))


def test_learned_activations_are_named() -> None:
    with pytest.raises(ArchitectureError, match=r"its input comes from XIELUActivation layers\.0\.mlp\.act_fn"):
        find(AutoConfig.for_model("apertus"))


def test_experts_are_no_ffns() -> None:
    with pytest.raises(ArchitectureError, match="None was found"):
        find(AutoConfig.for_model("mixtral"))


def test_dense_layers_of_a_sparse_model_are_found() -> None:
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=5, first_k_dense_replace=2)
    assert [s.last for s in find(config).sites] == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]


def test_a_class_can_be_given() -> None:
    sites = find(AutoConfig.for_model("bert"), BertForMaskedLM).sites
    assert {s.tower for s in sites} == {"bert.encoder.layer"}


def test_trace_of_a_given_model() -> None:
    config = tiny_config(AutoConfig.for_model("bert"))
    model = model_class(config)(config).double().eval()
    randomize(model)
    sites = trace(model, {"input_ids": torch.arange(8)[None]})
    assert [s.last for s in sites] == ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"]


@pytest.mark.parametrize("model_type", ["llama", "clip", "whisper", "swin", "t5", "llava"])
def test_the_twin_keeps_the_config_and_is_small(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    before = config.to_dict()
    twin = build(model_class(config), config, scales(config)[0], torch.float64)
    assert config.to_dict() == before
    assert sum(p.numel() for p in twin.parameters()) < 30_000_000
    assert all(s.width != s.hidden for s in twin_of(model_class(config), config)[1].sites.values())


D, F = 6, 10


class Block(nn.Module):
    """One way to wire linears."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.up = nn.Linear(
            D, 2 * F if way in {"fused", "fused_reversed", "interleaved", "interleaved_reversed"} else F
        )
        self.gate = nn.Linear(D, F)
        self.down = nn.Linear(F, D)
        self.norm = nn.LayerNorm(F)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.inner(x, self.up(x)))

    def inner(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        silu = nn.functional.silu
        ways = {
            "plain": lambda: silu(h),
            "gated": lambda: silu(self.gate(x)) * h,
            "fused": lambda: silu(h[..., :F]) * h[..., F:],
            "fused_reversed": lambda: h[..., :F] * silu(h[..., F:]),
            "interleaved": lambda: silu(h[..., ::2]) * h[..., 1::2],
            "interleaved_reversed": lambda: h[..., ::2] * silu(h[..., 1::2]),
            "norm": lambda: self.norm(silu(h)),
            "no activation": lambda: h,
            "scaled": lambda: silu(h) * 1.0001,
            "other input": lambda: silu(self.gate(x + 1)) * h,
            "residual": lambda: silu(h) + h,
        }
        return ways[self.way]()


def seen(way: str) -> tuple[dict[str, Site], dict[str, str]]:
    torch.manual_seed(0)
    block = Block(way).double()
    with recording(block) as record:
        block(torch.randn(2, 3, D, dtype=torch.float64))
    return match(record, activations())


@pytest.mark.parametrize("way", ["plain", "gated", "fused", "fused_reversed", "interleaved", "interleaved_reversed"])
def test_layouts_are_told_apart(way: str) -> None:
    sites, refused = seen(way)
    first = ("gate", "up") if way == "gated" else ("up",)
    assert sites == {"down": Site(first, "down", way, "silu", D, F, **BIASED)}  # type: ignore[arg-type]
    assert not refused


@pytest.mark.parametrize("way", ["norm", "no activation", "scaled", "other input", "residual"])
def test_near_misses_are_refused_with_a_reason(way: str) -> None:
    sites, refused = seen(way)
    assert not sites
    assert list(refused) == ["down"]


class LeakConfig(PreTrainedConfig):
    model_type = "leak"


class Leak(PreTrainedModel):
    """An FFN whose inner values another branch reads as well: it can't be replaced."""

    config_class = LeakConfig

    def __init__(self, config: LeakConfig) -> None:
        super().__init__(config)
        self.up, self.down, self.other = nn.Linear(D, F), nn.Linear(F, D), nn.Linear(F, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(x)
        return self.down(nn.functional.relu(h)) + self.other(h)


def test_an_inner_value_read_twice_is_refused() -> None:
    torch.manual_seed(0)
    model = Leak(LeakConfig()).double().eval()
    assert trace(model, {"x": torch.randn(4, D, dtype=torch.float64)}) == []


def coverage() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_of_the_splice", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "model_type",
    ["clip", "vit", "bert", "whisper", "m2m_100", "t5", "llama", "gpt2", "modernbert", "phi3", "albert", "llava"],
)
def test_identical_experts_in_place_of_every_ffn_keep_all_outputs(model_type: str) -> None:
    row = coverage().cover(model_type)
    assert row.verdict == "exact", row
    # All outputs in float32, relative to the largest one: some tens of roundings.
    torch.testing.assert_close(torch.tensor(row.difference), torch.tensor(0.0), atol=1e-5, rtol=0)
