from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from moesaic.experts.noise_upcycling import NoiseUpcycling
from moesaic.ffn import FFN, NEURON_AXIS
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

LAYER = LayerSpec(3, 2, 97, 256, 256)
WEIGHTS = ("gate", "up", "down")


def changes(init: NoiseUpcycling, dense: FFN) -> list[dict[str, torch.Tensor]]:
    """Return new - old of every matrix, for every expert but the first."""
    _, *experts = init.experts(dense, LAYER, Stream(0))
    old = dict(dense.matrices())
    return [{name: t - old[name] for name, t in expert.matrices() if name in WEIGHTS} for expert in experts]


@pytest.mark.parametrize("mode", ["add_rows", "replace_elements", "relative", "rotate"])
def test_copies_leaves_expert_0_dense_and_all_does_not(make_ffn: Callable[..., FFN], mode: str) -> None:
    dense = make_ffn(256, 97, biased=True)
    assert next(NoiseUpcycling(mode=mode).experts(dense, LAYER, Stream(0))) is dense
    first, *_ = NoiseUpcycling(mode=mode, sides="all").experts(dense, LAYER, Stream(0))
    assert all(not torch.equal(dict(first.matrices())[name], dict(dense.matrices())[name]) for name in WEIGHTS)


def test_add_rows_adds_noise_of_the_stated_size_to_half_the_neurons(make_ffn: Callable[..., FFN]) -> None:
    for change in changes(NoiseUpcycling(mode="add_rows"), make_ffn(256, 97)):
        for name, delta in change.items():
            touched = delta.abs().amax(1 - NEURON_AXIS[name]) > 0
            assert int(touched.sum()) == 128
            noise = delta.index_select(NEURON_AXIS[name], touched.nonzero().flatten())
            assert_close(
                noise.std(), torch.tensor(0.02, dtype=torch.float64), rtol=5 / (2 * noise.numel()) ** 0.5, atol=0
            )


def test_replace_elements_redraws_half_the_entries_with_the_matrix_moments(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(256, 97).map(lambda _, t: 3 * t + 1)
    for change in changes(NoiseUpcycling(mode="replace_elements"), dense):
        for name, delta in change.items():
            touched = delta != 0
            share = 5 * 0.5 / delta.numel() ** 0.5  # five standard deviations
            assert float(touched.double().mean()) == pytest.approx(0.5, abs=share)
            new = (dict(dense.matrices())[name] + delta)[touched]
            assert float(new.mean()) == pytest.approx(1, abs=3 * 2**0.5 * 2 * share)
            assert float(new.std()) == pytest.approx(3, rel=2 * share)


def test_relative_noise_is_a_fraction_of_the_matrix_std(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(256, 97).map(lambda name, t: t * {"gate": 1.0, "up": 10.0, "down": 0.1}[name])
    for change in changes(NoiseUpcycling(strength=0.05), dense):
        for name, delta in change.items():
            want = 0.05 * dict(dense.matrices())[name].std()
            assert_close(delta.std(), want, rtol=5 / (2 * delta.numel()) ** 0.5, atol=0)  # five standard deviations


@pytest.mark.parametrize("hidden", [96, 97])
def test_rotate_is_an_exact_rotation_of_the_hidden_side(make_ffn: Callable[..., FFN], hidden: int) -> None:
    dense = make_ffn(128, hidden)
    spec = LayerSpec(2, 1, hidden, 128, 128)
    _, expert = NoiseUpcycling(mode="rotate", strength=0.1).experts(dense, spec, Stream(0))
    for name in WEIGHTS:
        old, new = dict(dense.matrices())[name], dict(expert.matrices())[name]
        rows_old, rows_new = (old, new) if NEURON_AXIS[name] == 0 else (old.T, new.T)
        assert_close(rows_new @ rows_new.T, rows_old @ rows_old.T, rtol=0, atol=1e-12)  # float64 sums of 97 terms
        cosine = (rows_new * rows_old).sum() / rows_old.square().sum()
        assert float(cosine) == pytest.approx(1 - 0.1**2 / 2, abs=3e-3)  # E cos of an angle of 0.1 radians, 48 draws


def test_half_precision_comes_back_wide_and_untouched_rows_round_back(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(256, 97, dtype=torch.bfloat16)
    _, expert, _ = NoiseUpcycling(mode="add_rows").experts(dense, LAYER, Stream(0))
    assert expert.up.dtype == torch.float32
    assert int((expert.up.bfloat16() == dense.up).all(1).sum()) >= 128


def test_a_field_the_mode_ignores_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_upcycling: strength must be left out, mode add_rows.*Got 0.5"):
        NoiseUpcycling(mode="add_rows", strength=0.5)
    with pytest.raises(ValueError, match=r"std must be left out, mode rotate.*Got 0.1"):
        NoiseUpcycling(mode="rotate", std=0.1)
