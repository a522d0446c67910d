"""Tokens as text, pictures as the model sees them, and waves as peaks."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.integration import calibrating as pico
from torch.testing import assert_close

from moesaic.calibration.data import Sound
from moesaic.calibration.readers.base import Example
from moesaic.diagnostics.media import BARS, data_uri, shown, wave
from moesaic.diagnostics.samples import pieces


def test_pieces_of_a_text_are_its_tokens_with_their_spaces(tmp_path: Path) -> None:
    pico.save_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the fox runs and sees the sea")["input_ids"]
    found = pieces(tokenizer, ids)
    assert found == ("<s>", " the", " fox", " runs", " and", " sees", " the", " sea")
    assert "".join(found) == tokenizer.decode(ids)


def test_a_picture_is_shown_as_it_was_before_normalisation() -> None:
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    mean, deviation = [0.48, 0.45, 0.4], [0.27, 0.26, 0.25]
    given = (torch.from_numpy(pixels_HW3).float() / 255 - torch.tensor(mean)) / torch.tensor(deviation)
    processor = SimpleNamespace(do_normalize=True, image_mean=mean, image_std=deviation)
    np.testing.assert_array_equal(shown(given.permute(2, 0, 1), processor), pixels_HW3)


def test_a_picture_of_unknown_normalisation_is_shown_by_its_range() -> None:
    given = torch.linspace(-3, 5, 12).view(3, 2, 2)
    found = shown(given, SimpleNamespace())
    assert (found.min(), found.max()) == (0, 255)


def test_pngs_are_small_and_hold_the_picture() -> None:
    pixels = np.full((300, 150, 3), (10, 200, 30), np.uint8)
    head, _, body = data_uri(pixels).partition(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert picture.size == (56, 112)
    assert picture.getpixel((20, 50)) == (10, 200, 30)


def test_a_wave_is_its_peaks() -> None:
    samples = np.zeros(3200, np.float32)
    samples[800], samples[-1] = -0.5, 0.25
    seconds, found = wave(Example("one", "audio", 10, media=Sound("one", samples, 16000)))
    assert (seconds, len(found)) == (0.2, BARS)
    assert {place: peak for place, peak in enumerate(found) if peak} == {50: 0.5, 199: 0.25}


def test_a_short_wave_and_no_wave() -> None:
    seconds, found = wave(Example("one", "audio", 1, media=Sound("one", np.full(16, 0.5, np.float32), 16000)))
    assert seconds == 0.001
    assert_close(sorted(set(found)), [0.0, 0.5])
    assert wave(Example("one", "text", 1)) == (0.0, ())


@pytest.mark.parametrize("count", [1, 2])
def test_pieces_of_few_tokens(tmp_path: Path, count: int) -> None:
    pico.save_tokenizer(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(pieces(tokenizer, [5, 6][:count])) == count
