"""Spliced layers whose weights have another dtype than what reaches them: T5 keeps its last linears in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tests.integration import spliceable
from torch.testing import assert_close

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, convert
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.modeling.spliced import MoELayer
from moesaic.routers.normal import Normal
from moesaic.spec import MoESpec

HALF = {"rtol": 0, "atol": 2e-3}
"""Of the largest output: float16 rounds the dense first linear, and the experts' not, by 5e-4 in each of four FFNs."""


def layer(dtype: torch.dtype) -> MoELayer:
    torch.manual_seed(0)
    ffn = {"hidden": 16, "layout": "gated", "act": "silu", "first_bias": False, "last_bias": False}
    moe = {"num_experts": 4, "top_k": 2, "expert_size": 8, "shared_size": 8, "normalize_gates": True}
    return MoELayer({**ffn, **moe}).requires_grad_(requires_grad=False).to(dtype)


@pytest.mark.parametrize("experts", [SparseUpcycling(), Spri(noise=0)], ids=lambda e: e.name())  # Spri: one is shared
@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_a_t5_in_float16_computes_the_dense_output(name: str, experts: SparseUpcycling | Spri, tmp_path: Path) -> None:
    spliceable.save(spliceable.make(name, torch.float32).half(), tmp_path / "dense")
    router = Normal(std=0.5) if isinstance(experts, SparseUpcycling) else None
    chosen = Options(MoESpec(4, 2), experts, router, target="splice")
    convert(DenseCheckpoint.open(tmp_path / "dense"), tmp_path / "moe", chosen)
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    dense = load(tmp_path / "dense", dtype=torch.float16).eval()
    sparse = load(tmp_path / "moe", dtype=torch.float16, trust_remote_code=True).eval()
    given, block = spliceable.inputs(dense), "encoder.block.0.layer.1.DenseReluDense"
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).half()
    found, want = sparse.get_submodule(block)(x), dense.get_submodule(block)(x)
    assert found.dtype == want.dtype == torch.float32  # so that the residual can't overflow
    want = spliceable.output(dense, given)
    if isinstance(experts, SparseUpcycling):
        assert_close(spliceable.output(sparse, given) / want.abs().max(), want / want.abs().max(), **HALF)
    made = sparse.generate(given["input_ids"], max_new_tokens=4, decoder_start_token_id=0)
    assert made.shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_weights_say_in_which_dtype_a_layer_computes(dtype: torch.dtype) -> None:
    wide, x = layer(torch.float32), torch.randn(5, 16).to(dtype)
    assert torch.equal(wide.compute(x), wide.compute(x.float()))
    narrow = layer(dtype)
    assert torch.equal(narrow.compute(x.float()), narrow.compute(x))


def test_a_router_in_float32_sees_the_tokens_in_float32() -> None:
    mixed, seen = layer(torch.bfloat16), []
    mixed.router.float().register_forward_hook(lambda _, given, __: seen.append(given[0]))
    x = torch.randn(5, 16)
    assert mixed.compute(x).dtype == torch.bfloat16
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_sees_to_dtypes_itself(dtype: torch.dtype) -> None:
    wide, x = layer(torch.float32), torch.randn(5, 16).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = wide.compute(x)
    assert y.dtype == torch.promote_types(dtype, torch.bfloat16)
    want = wide.compute(x)
    assert_close(y.float(), want, rtol=0, atol=2**-7 * float(want.abs().max()))  # bfloat16 rounds by 2**-9, some times
