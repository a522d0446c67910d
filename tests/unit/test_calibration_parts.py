"""The parts of calibration: which rows are real, which examples run together, and files read with suspicion."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.testing import assert_close

from moesaic.calibration.batching import grouped
from moesaic.calibration.readers.base import Example, Feed
from moesaic.calibration.record import Counted, Origin, Record, statistic_of
from moesaic.calibration.result import Calibration
from moesaic.calibration.rows import match
from moesaic.errors import CalibrationError
from moesaic.sites import Site
from moesaic.stats import Batch, measure
from moesaic.stats.label_moments import LabelMoments
from moesaic.stats.neuron_rates import NeuronRates

CPU = torch.device("cpu")
SITE = Site(("h.0.fc1",), "h.0.fc2", "plain", "gelu", 3, 4, first_bias=True, last_bias=True)
# Nothing is computed on the way: values must come back as they are.
EXACT = {"atol": 0, "rtol": 0}


def feed(**masks: torch.Tensor) -> Feed:
    return Feed("text", {}, torch.tensor([5, 7]), **masks)


MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_a_text_mask_fits_to_the_token() -> None:
    rows = match(feed(tokens_BT=MASK), 6, CPU)
    assert rows.label_T.tolist() == [5, 5, 7, 7, 7]
    assert rows.last_T.tolist() == [False, True, False, False, True]
    x = torch.arange(12.0).view(2, 3, 2)
    assert_close(rows.of(x), x.view(6, 2)[[0, 1, 3, 4, 5]], **EXACT)
    assert_close(rows.of(x.view(6, 2)), rows.of(x), **EXACT)


def test_frames_are_stretched_to_the_tokens_made_of_them() -> None:
    frames = torch.arange(8) < torch.tensor([[5], [8]])
    rows = match(feed(frames_BL=frames), 8, CPU)
    assert rows.label_T.tolist() == [5, 5, 5, 7, 7, 7, 7]
    both = match(feed(frames_BL=frames, tokens_BT=MASK), 6, CPU)  # what the decoder reads
    assert both.label_T.tolist() == [5, 5, 7, 7, 7]


@pytest.mark.parametrize("count", [2, 8, 100])
def test_where_no_mask_fits_every_row_counts(count: int) -> None:
    rows = match(feed(tokens_BT=MASK), count, CPU)
    assert rows.keep_N is None
    assert rows.label_T.tolist() == [5] * (count // 2) + [7] * (count // 2)
    assert rows.last_T.sum() == 2


def test_rows_that_do_not_divide_have_no_label() -> None:
    rows = match(feed(tokens_BT=MASK), 7, CPU)
    assert rows.label_T.tolist() == [-1] * 7
    assert not rows.last_T.any()


def test_a_batch_of_pads_is_refused() -> None:
    with pytest.raises(CalibrationError, match="a batch must hold a real token"):
        match(feed(tokens_BT=torch.zeros_like(MASK)), 6, CPU)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_groups_hold_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    examples = [Example(str(place), "text", length) for place, length in enumerate(lengths)]
    groups = grouped(examples, budget)
    assert sorted(int(one.name) for group in groups for one in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or max(one.tokens for one in group) * len(group) <= budget for group in groups)
    firsts = [int(group[0].name) for group in groups]
    assert firsts == sorted(firsts)


def calibration() -> Calibration:
    """Return what two statistics say of 20 random tokens."""
    random = torch.Generator().manual_seed(0)
    x_TD, h_TF = torch.randn(20, 3, generator=random), torch.randn(20, 4, generator=random)
    batch = Batch.of(x_TD, label_T=torch.arange(20) % 2, neurons_TF=h_TF)
    tensors: dict[str, torch.Tensor] = {}
    statistics = LabelMoments(), NeuronRates(fraction=0.5)
    for index, statistic in enumerate(statistics):
        sums = statistic.zeros(3, 4, 2)
        statistic.add(sums, {}, batch)
        tensors |= {f"9/{index}/sum/{name}": total for name, total in sums.items()}
    counted = Counted(9, SITE, tuple(statistic.key() for statistic in statistics), 20)
    origin = Origin("dense", "f" * 64, "texts", 3)
    return Calibration(Record(origin, ("a", "b"), (counted,), 1, "0" * 64), tensors)


def test_a_file_gives_back_the_statistics(tmp_path: Path) -> None:
    made = calibration()
    made.save(tmp_path / "s.safetensors")
    found = Calibration.load(tmp_path / "s.safetensors")
    assert found.record == made.record
    for key in (9, "h.0.fc2", SITE):
        seen = found.seen(key)
        assert seen.labels == ("a", "b")
        for statistic in (LabelMoments(), NeuronRates(fraction=0.5)):
            for name, value in made.seen(9)[statistic].items():
                assert_close(seen[statistic][name], value, **EXACT)
    with pytest.raises(
        CalibrationError, match=r"it must hold statistics of the FFN h.1.fc2. Got those of \['h.0.fc2'\]"
    ):
        found.seen("h.1.fc2")
    with pytest.raises(CalibrationError, match="neuron_rates: the method needs this statistic"):
        found.seen(9)[NeuronRates()]


def test_results_are_those_of_measure() -> None:
    random = torch.Generator().manual_seed(0)
    x_TD, h_TF = torch.randn(20, 3, generator=random), torch.randn(20, 4, generator=random)
    batch = Batch.of(x_TD, label_T=torch.arange(20) % 2, neurons_TF=h_TF)
    want = measure([LabelMoments()], [batch], width=4, labels=("a", "b"))[LabelMoments()]
    for name, value in calibration().seen(9)[LabelMoments()].items():
        assert_close(value, want[name], **EXACT)


def test_statistics_of_another_model_are_refused() -> None:
    calibration().check("f" * 64, "dense")
    with pytest.raises(
        CalibrationError, match=r"the model that is upcycled, other \(eeeeeeeeeeee\). Got those of dense"
    ):
        calibration().check("e" * 64, "other")


def spoilt(path: Path, change: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
    made = calibration()
    metadata = {"moesaic": json.dumps({**made.record.to_json(), **change})}
    save_file(dict(made.tensors if tensors is None else tensors), path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": 2}, "its record must be whole. Got record version 2"),
        ({"labels": [1]}, "where a list of texts must stand"),
        ({"labels": None}, "labels = None where a list must stand"),
        ({"sites": [{}]}, "number = None where a int must stand"),
        ({"sites": [{"number": 1, "site": {}, "statistics": [], "tokens": 1}]}, "Site: keys must be"),
        ({"origin": {"model": "m"}}, "fingerprint = None where a str must stand"),
        ({"sites": []}, "every tensor must be of a site in the record"),
    ],
)
def test_spoilt_records_get_one_message(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Calibration.load(spoilt(tmp_path / "s.safetensors", change))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04pickle", struct.pack("<Q", 9) + b"{", struct.pack("<Q", 2) + b"[]"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.safetensors").write_bytes(content)
    with pytest.raises(CalibrationError, match="the file must be a whole safetensors file"):
        Calibration.load(tmp_path / "s.safetensors")


def test_missing_files_and_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="the file must be a whole safetensors file"):
        Calibration.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CalibrationError, match="a file of statistics must have the record 'moesaic'"):
        Calibration.load(tmp_path / "model.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "deep.safetensors", {"moesaic": "[" * 100_000})
    with pytest.raises(CalibrationError, match="its record must be whole"):
        Calibration.load(tmp_path / "deep.safetensors")


def test_spoilt_sums_are_refused(tmp_path: Path) -> None:
    for name, value, message in (
        ("9/0/sum/second_DD", torch.zeros(2, 2, dtype=torch.float64), "h.0.fc2 must have the sums of label_moments"),
        ("9/0/sum/second_DD", torch.zeros(3, 3), "h.0.fc2 must have the sums of label_moments"),
        ("9/0/sum/second_DD", torch.full((3, 3), torch.nan, dtype=torch.float64), "the sums must be finite"),
    ):
        tensors = {**calibration().tensors, name: value}
        with pytest.raises(CalibrationError, match=message):
            Calibration.load(spoilt(tmp_path / "s.safetensors", {}, tensors)).seen(9)
    made = calibration()
    del made.tensors["9/1/sum/tokens"]  # type: ignore[attr-defined]
    with pytest.raises(CalibrationError, match="must have the sums of neuron_rates"):
        made.seen(9)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("neuron_rate {}", "each must be one that moesaic knows. Got 'neuron_rate'. Did you mean 'neuron_rates'?"),
        ('neuron_rates {"share": 1}', "neuron_rates: its settings must be fields of the statistic"),
        ('neuron_rates {"fraction": 7}', "neuron_rates: its settings must be fields of the statistic"),
        ("neuron_rates", "neuron_rates: its settings must be fields of the statistic"),
        ("neuron_rates 3", "neuron_rates: its settings must be fields of the statistic"),
    ],
)
def test_unknown_statistics_are_refused(key: str, message: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        statistic_of(key)
    assert message in str(caught.value)


def test_keys_come_back_as_statistics() -> None:
    for statistic in (LabelMoments(), NeuronRates(), NeuronRates(fraction=0.25)):
        assert statistic_of(statistic.key()) == statistic


def test_records_come_back() -> None:
    record = replace(calibration().record, labels=("é", '"'))
    assert Record.parse(json.dumps(record.to_json())) == record
