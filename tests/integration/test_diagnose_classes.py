"""In every stock class: the input of a router gives its logits, and the weights of an expert compute what it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.integration import pico
from tests.integration.test_pairs import load, samples, upcycle
from torch.testing import assert_close

from moesaic.calibration.readers.base import Feed
from moesaic.diagnostics.expert_weights import expert_ffns
from moesaic.diagnostics.outputs import outputs
from moesaic.diagnostics.watching import Seen, Watch

STOCK = {target: (name, sample) for name, target, sample in samples()}
"""Sparse class -> a dense pico and the largest sample that it can express."""
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
"""The rounding of a sum of 64 float32 products, once in the model's order and once in the test's."""


@pytest.mark.parametrize("target", sorted(STOCK))
def test_routers_and_experts_are_read_as_the_class_runs_them(target: str, tmp_path: Path) -> None:
    dense, sample = STOCK[target]
    pico.save_text(tmp_path / "dense", dense)
    model = pico.randomize(load(upcycle(tmp_path / "dense", tmp_path / "moe", sample, target)))
    ids_BT = pico.tokens()
    real_BT = torch.ones_like(ids_BT).bool()
    real_BT[1, 20:] = False
    seen: list[Seen] = []
    watch = Watch(model, seen.append)
    watch.begin(Feed("text", {"input_ids": ids_BT}, torch.tensor([0, 1]), real_BT))
    with watch, torch.no_grad():
        model(input_ids=ids_BT, attention_mask=real_BT.long())
    assert [one.path for one in seen] == [block.path for block in watch.blocks]
    for one in seen:
        logits_NE = one.asked_ND @ one.block.router_weight.detach().T
        assert_close(logits_NE[one.place_T], one.routing.logits_TE, **FLOAT32)
        assert one.token_T is not None
        assert one.token_T.tolist() == ids_BT[real_BT].tolist()
        assert one.routing.group_T is not None
        assert one.routing.group_T.tolist() == [0] * 24 + [1] * 20
    x_SD, experts = seen[0].input_ND[:6], seen[0].block.experts
    y_ESD = torch.stack([ffn(x_SD, experts.act_fn) for ffn in expert_ffns(seen[0].block)])  # type: ignore[arg-type]
    assert_close(y_ESD, outputs(seen[0].block, x_SD), **FLOAT32)
