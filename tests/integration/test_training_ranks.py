"""Two processes that share a model by DDP, FSDP2 or their experts train it as one does, router losses included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from tests.integration.training_picos import collate, examples, mixtral, objective, plain
from tests.integration.training_ranks import BATCH, DTYPES, LOOPS, WAYS
from tests.integration.two_processes import two_processes
from torch.testing import assert_close

from moesaic.observing import observe

SCRIPT = Path(__file__).with_name("training_ranks.py")
BOUNDS: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 0, "atol": 1e-12},  # the order of sums
    torch.float32: {"rtol": 0, "atol": 2e-5},  # the same, in weights and logits about 1 to 10 in size
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all loops of all ways in two processes."""
    folder = tmp_path_factory.mktemp("ways")
    mixtral().save_pretrained(folder / "moe")
    two_processes("training_ranks", folder, ",".join(WAYS))
    return folder


def found(work: Path, way: str, loop: str) -> dict[str, Any]:
    return torch.load(work / f"{way}-{loop}.pt")  # type: ignore[no-any-return]


def test_each_process_is_told_of_its_own_tokens(work: Path, way: str) -> None:
    """Experts' ids are those of the whole model, wherever they are."""
    seen = found(work, way, "plain")["seen"]
    model = mixtral().to(DTYPES[way])
    with observe(model) as passes, torch.no_grad():
        model(**collate(examples()[:BATCH]))
    for layer, want in enumerate(passes[0]):
        halves = [part[layer] for part in seen]
        for name, tensor in (("logits", want.logits_TE), ("ids", want.ids_TK), ("gates", want.weights_TK)):
            assert_close(torch.cat([half[name] for half in halves]), tensor, **BOUNDS[DTYPES[way]])
        assert want.sequence_T is not None
        own = torch.cat([half["sequence"] + BATCH // 2 * rank for rank, half in enumerate(halves)])
        assert_close(own, want.sequence_T)


@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_train_as_one(loop: str, work: Path, way: str) -> None:
    model, losses = mixtral().to(DTYPES[way]), objective()
    want = plain(model, examples("equally" if loop == "plain" else "unequally"), losses)
    two = found(work, way, loop)
    assert_close(two["weights"], want, **BOUNDS[DTYPES[way]])
    logged = {name for name in two["logs"] if name.startswith("router/")}
    assert logged == {f"router/{one}/model.layers.{i}.mlp" for one in ("load_balancing", "router_z") for i in (0, 1)}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_saved_is_a_plain_checkpoint(loop: str, work: Path, way: str) -> None:
    folder = work / f"{way}-{loop}"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[way])
    assert_close(dict(model.named_parameters()), found(work, way, loop)["weights"], rtol=0, atol=0)  # the same numbers
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.layers.1.block_sparse_moe.experts.3.w1.weight" in names
    assert "distributed_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
