"""Every dense family in every sparse class that takes it, and every composite: same logits before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.integration import pico
from torch.testing import assert_close

from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records
from moesaic.architectures.config import Config
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, convert
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.routers.normal import Normal
from moesaic.spec import Layers, MoESpec

SAMPLES = {
    "plain": {},
    "last:2 + shared": {"leading_dense": "layers", "shared_expert": "shared"},
    "every:2 + shared": {"some_layers": "layers", "shared_expert": "shared"},
    "every:2": {"some_layers": "layers"},
    "last:2": {"leading_dense": "layers"},
    "shared": {"shared_expert": "shared"},
}
"""Sparsity asked for -> features it needs; of those beyond `plain`, the first that a target can do is tested."""
TF4 = os.environ.get("MOESAIC_TRANSFORMERS4_PYTHON", "")
"""A Python with transformers 4.57; without it the test that loads our folders there is skipped."""


@cache
def obstacles(name: str, target: str, sample: str) -> tuple[str, ...]:
    family = records(DenseFamily)[pico.PICOS[name][0]]
    values = json.loads(pico.text_config(name).to_json_string(use_diff=False))
    return tuple(records(SparseTarget)[target].obstacles(family.read(Config(values)), SAMPLES[sample]))


def samples() -> list[tuple[str, str, str]]:
    found = []
    for name, (model_type, _) in pico.PICOS.items():
        for target in records(DenseFamily)[model_type].targets:
            possible = [sample for sample in SAMPLES if not obstacles(name, target, sample)]
            found += [(name, target, sample) for sample in possible[:2] if name not in COMPOSITE_ONLY]
    return found


COMPOSITE_ONLY = ("qwen3-vl-text",)
"""Language models that have no class of their own to stand in."""


def spec(sample: str) -> MoESpec:
    rule = next((word for word in sample.split(" + ") if ":" in word), "all")
    return MoESpec(4, 2, shared_expert="shared" in sample or None, layers=Layers(rule))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, transformers.PreTrainedModel]]:
    """Return a maker of pico models, each made once: (folder, model)."""

    @cache
    def make(name: str) -> tuple[Path, transformers.PreTrainedModel]:
        folder = tmp_path_factory.mktemp(name)
        save = pico.save_composite if name in pico.COMPOSITES else pico.save_text
        return folder, save(folder, name)

    return make


def upcycle(source: Path, out: Path, sample: str = "plain", target: str | None = None) -> Path:
    """Write `source` with four equal experts and a router that prefers some of them."""
    convert(DenseCheckpoint.open(source), out, Options(spec(sample), SparseUpcycling(), Normal(std=0.2), target=target))
    return out


def load(folder: Path) -> transformers.PreTrainedModel:
    """Load a folder with its own class; nothing may be missing, left over or misshapen."""
    class_name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, info = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    state = model.state_dict()
    # Classes whose shared expert may be of size zero still have tensors for it; nobody writes those.
    assert not [name for name in info["missing_keys"] if state[name].numel()]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def logits(model: transformers.PreTrainedModel, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**(inputs or {"input_ids": pico.tokens()})).logits


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    """Hold float32 logits to 1e-5 of the largest: the rounding of a few layers."""
    assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize(("name", "target", "sample"), samples())
def test_a_sparse_model_of_equal_experts_computes_the_dense_logits(
    name: str, target: str, sample: str, tmp_path: Path, dense: Callable[[str], Any]
) -> None:
    folder, model = dense(name)
    sparse = load(upcycle(folder, tmp_path / "moe", sample, target))
    assert sparse.config.model_type == target
    assert_same(logits(sparse), logits(model))


@pytest.mark.parametrize("name", pico.COMPOSITES)
def test_a_composite_keeps_its_logits(name: str, tmp_path: Path, dense: Callable[[str], Any]) -> None:
    folder, model = dense(name)
    sparse = load(upcycle(folder, tmp_path / "moe"))
    assert sparse.config.text_config.model_type in records(SparseTarget)
    assert_same(logits(sparse), logits(model))


def noise(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(2))


def with_placeholders(count: int) -> torch.Tensor:
    ids = pico.tokens(16, batch=1)
    ids[0, 2 : 2 + count] = 127
    return ids


def patches() -> dict[str, Any]:
    """Return one picture of 4 x 4 patches as the Qwen-VL models take it."""
    ids = with_placeholders(4)
    grid = torch.tensor([[1, 4, 4]])
    return {
        "pixel_values": noise(16, 3 * 2 * 4 * 4),
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == 127).int(),
        "input_ids": ids,
    }


SEEN_AND_HEARD: dict[str, Callable[[], Mapping[str, Any]]] = {
    "llava-llama": lambda: {"pixel_values": noise(1, 3, 28, 28), "input_ids": with_placeholders(4)},
    "idefics3": lambda: {"pixel_values": noise(1, 1, 3, 28, 28), "input_ids": with_placeholders(1)},
    "qwen3-vl": patches,
    "qwen3_5-vl": patches,
    "qwen2-audio": lambda: {
        "input_features": noise(1, 16, 40),
        "feature_attention_mask": torch.ones(1, 40, dtype=torch.long),
        "attention_mask": torch.ones(1, 16, dtype=torch.long),
        "input_ids": with_placeholders(10),
    },
}
"""Pictures and sounds for those composites that need no processor to take them."""


@pytest.mark.parametrize("name", SEEN_AND_HEARD)
def test_a_composite_sees_and_hears_as_before(name: str, tmp_path: Path, dense: Callable[[str], Any]) -> None:
    folder, model = dense(name)
    inputs = SEEN_AND_HEARD[name]()
    want = logits(model, **inputs)
    other = {key: -value if value.is_floating_point() else value for key, value in inputs.items()}
    assert (logits(model, **other) - want).abs().max() > 1e-2
    assert_same(logits(load(upcycle(folder, tmp_path / "moe")), **inputs), want)


def test_a_shard_boundary_of_the_picos_splits_a_layer(dense: Callable[[str], Any]) -> None:
    folder, _ = dense("llama")
    shards = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert len({file for name, file in shards.items() if ".layers.1." in name}) > 1


@pytest.mark.parametrize("model_type", [
    name for name in records(Wrapper) if name not in {model_type for model_type, _, _ in pico.COMPOSITES.values()}
])  # fmt: skip
def test_only_composites_that_need_timm_are_left_out(model_type: str) -> None:
    assert model_type in ("fast_vlm", "perception_lm")


@pytest.mark.skipif(not TF4, reason="MOESAIC_TRANSFORMERS4_PYTHON names no Python with transformers 4.57")
def test_transformers_4_loads_the_same_folders(tmp_path: Path, dense: Callable[[str], Any]) -> None:
    folders = []
    for name, target, sample in samples():
        record = records(SparseTarget)[target]
        values = json.loads(pico.text_config(name).to_json_string(use_diff=False))
        features = records(DenseFamily)[pico.PICOS[name][0]].read(Config(values)).features
        if not record.cannot_serve("transformers4", {**features, **SAMPLES[sample]}):
            folder, model = dense(name)
            out = upcycle(folder, tmp_path / f"{name} {target} {sample}", sample, target)
            torch.save({"input_ids": pico.tokens(), "logits": logits(model)}, out / "expected.pt")
            folders.append(out)
    script = Path(__file__).with_name("reload.py")
    done = subprocess.run([TF4, script, *folders], capture_output=True, text=True, check=False, cwd=tmp_path)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(folders) > 50
