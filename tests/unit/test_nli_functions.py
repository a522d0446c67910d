"""The exact functions against torch's in float64, over FP16's whole range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moesaic.errors import NliError
from moesaic.nli import FUNCTIONS, Format, function

F = torch.nn.functional
TORCH = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: F.softplus(x, threshold=100),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
}


def test_all_have_a_reference() -> None:
    assert set(TORCH) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_against_torch(name: str) -> None:
    """1e-12 of max(|f|, 1): torch's own formulas cancel where f is small, which the next test looks at."""
    x = Format.of("fp16").values()
    x = x[(x >= FUNCTIONS[name].domain[0]) & (x <= FUNCTIONS[name].domain[1])]
    x = x[::7]
    np.testing.assert_allclose(FUNCTIONS[name](x), TORCH[name](torch.tensor(x)).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "x", "exact"),
    [
        # by mpmath with 50 digits
        ("gelu", -8.0, -4.976768459417427e-15),
        ("silu", -30.0, -2.80728689065179e-12),
        ("mish", -30.0, -2.807286890651921e-12),
        ("softplus", -30.0, 9.357622968839737e-14),
        ("gelu_tanh", -5.0, -2.291796196629506e-7),
    ],
)
def test_no_cancellation_in_the_tails(name: str, x: float, exact: float) -> None:
    """A few units in the last place; 1 + erf, log(1 + exp) and 1 + tanh would have lost most or all digits."""
    np.testing.assert_allclose(float(FUNCTIONS[name](x)), exact, rtol=2e-14)


def test_a_callable_is_wrapped() -> None:
    def cube(x: np.ndarray) -> np.ndarray:
        return x**3

    made = function(cube)
    assert (made.name, float(made(3))) == ("cube", 27.0)
    assert function(made) is made


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NliError, match=r"Got 'gelo'. Did you mean 'gelu'\?"):
        function("gelo")
