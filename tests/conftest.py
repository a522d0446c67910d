"""Fixtures every suite shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moesaic.ffn import FFN


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
