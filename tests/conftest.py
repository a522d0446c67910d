"""Fixtures every suite shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.ffn import FFN

# transformers copies the code of model folders into one place by the last name of the folder, the same in all workers.
_CODE = tempfile.TemporaryDirectory(prefix="moesaic-modules-")
os.environ["HF_MODULES_CACHE"] = _CODE.name


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bits of matrix products may depend on the number of threads; workers of the converter have one each."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_ffn() -> Callable[..., FFN]:
    """Return a maker of random FFNs, `make_ffn(width, hidden, gated=, biased=, dtype=, seed=)`."""

    def make(
        width: int = 24,
        hidden: int = 12,
        *,
        gated: bool = True,
        biased: bool = False,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> FFN:
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

        return FFN(
            up=draw(width, hidden),
            down=draw(hidden, width),
            gate=draw(width, hidden) if gated else None,
            gate_bias=draw(width) if gated and biased else None,
            up_bias=draw(width) if biased else None,
            down_bias=draw(hidden) if biased else None,
        )

    return make


@pytest.fixture(scope="session")
def pico_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random Llama in float32, cut so that a shard boundary splits a layer."""
    import transformers  # noqa: PLC0415  # seconds of import, for those suites only that need a model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pico") / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200KB")
    return folder
