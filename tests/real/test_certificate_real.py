"""Certificates on SmolLM2-135M: promises kept to the rounding of float32 itself, layer by layer as at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import moesaic
from moesaic.certification import certify
from moesaic.certification.source import Source
from moesaic.certification.text import Text
from moesaic.checkpoints.sources import resolve
from moesaic.errors import SourceError
from moesaic.experts.base import ExpertInit
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.experts.virtual_group import VirtualGroup
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.modeling.loading import load
from moesaic.spec import Layers, MoESpec

pytestmark = pytest.mark.real

TOKENS = 112  # 16 of each built-in passage
SPEC = MoESpec(8, 2, layers=Layers("every:4"))


@pytest.fixture(scope="module")
def dense() -> Path:
    try:
        return resolve("smollm2-135m")
    except SourceError as error:
        if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def rounding(dense: Path) -> float:
    """Return the largest difference that float32 makes to a logit of the dense model itself."""
    source = Source.open(dense)
    (batch,) = Text.read(dense, None, TOKENS, source.vocab_and_hidden[0]).batches(TOKENS)
    with torch.no_grad():
        narrow_BTV, wide_BTV = (
            load(dense, source.config, dtype)(input_ids=batch.ids(), use_cache=False).logits
            for dtype in (torch.float32, torch.float64)
        )
    return float((narrow_BTV - wide_BTV).abs().max())


@pytest.mark.parametrize("experts", [SparseUpcycling(), VirtualGroup(), ZeroRouted()], ids=lambda method: method.name())
def test_an_exact_method_changes_a_logit_by_rounding_alone(
    experts: ExpertInit, dense: Path, rounding: float, tmp_path: Path
) -> None:
    moesaic.upcycle(dense, tmp_path / "moe", SPEC, experts=experts, certify=False)
    found = certify(dense, tmp_path / "moe", max_tokens=TOKENS)
    assert found.promised
    assert found.max_logit_diff < 4 * rounding
    assert (found.kl, found.agreement) == (0.0, 1.0)
    assert abs(found.loss_change) <= 2e-6  # the last digit that is written; its rounding differs from CPU to CPU
    assert [row["layer"] for row in found.layers if "router_entropy" in row] == [3, 7, 11, 15, 19, 23, 27]


def test_spri_is_what_the_paper_says_and_the_same_layer_by_layer(dense: Path, tmp_path: Path) -> None:
    moesaic.upcycle(dense, tmp_path / "moe", SPEC, experts=Spri(), certify=False)
    whole = certify(dense, tmp_path / "moe", max_tokens=TOKENS, streaming=False)
    assert certify(dense, tmp_path / "moe", max_tokens=TOKENS, streaming=True) == whole
    diverse = [row["diversity"] for row in whole.layers if "diversity" in row]
    assert_close(sum(diverse) / len(diverse), 0.8802, rtol=0, atol=2e-3)  # 88.02 %, Shan et al. 2026
    assert 0 < whole.kl < 1e-4
    assert not whole.promised
