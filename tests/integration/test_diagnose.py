"""`moesaic.diagnose` on a stock text model, a spliced image model and a spliced speech model, against what they do."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.integration import calibrating as pico

import moesaic
from moesaic.calibration import open_data, open_readers, plan_batches
from moesaic.diagnostics.counting import Counting
from moesaic.errors import MoesaicError
from moesaic.experts.base import ExpertInit
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.routers.normal import Normal

DIGITS: dict[str, float] = {"rel": 1e-5, "abs": 1e-6}
"""Six significant digits of sums of float32 probabilities, from batches that are padded otherwise."""


def made(root: Path, name: str, experts: ExpertInit, tower: str | None = None) -> Path:
    if not (root / name).exists():
        pico.MODELS[name](root / name)
    out = root / f"{name}-{experts.name()}"
    spec = moesaic.MoESpec(4, 2)
    moesaic.upcycle(root / name, out, spec, experts=experts, router=Normal(std=0.5), tower=tower, certify=False)
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diagnose")


@pytest.fixture(scope="module")
def text(root: Path) -> Path:
    return made(root, "llama", DropUpcycling())


@pytest.fixture(scope="module")
def diagnosis(text: Path) -> moesaic.Diagnosis:
    return moesaic.diagnose(text, pico.data_for("llama"))


def passes(folder: Path, inputs: list[dict[str, torch.Tensor]]) -> list[Any]:
    """Return the routings of each input by itself, without padding."""
    model = moesaic.load(folder)
    with moesaic.observe(model) as found, torch.no_grad():
        for one in inputs:
            model(**one)
    return list(found)


def texts(folder: Path) -> list[dict[str, torch.Tensor]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [{"input_ids": torch.tensor([tokenizer(row["text"])["input_ids"]])} for row in pico.data_for("llama")]


def test_round_trip_is_exact(diagnosis: moesaic.Diagnosis) -> None:
    text = json.dumps(diagnosis.to_json(), allow_nan=False)
    assert moesaic.Diagnosis.from_json(json.loads(text)) == diagnosis


def test_routing_is_that_of_every_text_by_itself(text: Path, diagnosis: moesaic.Diagnosis) -> None:
    found = passes(text, texts(text))
    assert (diagnosis.kind, diagnosis.data.sequences, diagnosis.data.groups) == ("text", 24, ("a", "b", "c"))
    assert [layer.number for layer in diagnosis.layers] == [0, 1]
    for place, layer in enumerate(diagnosis.layers):
        routings = [one[place] for one in found]
        assert {one.layer for one in routings} == {layer.path}
        probs_TE, ids_TK = torch.cat([one.probs_TE for one in routings]), torch.cat([one.ids_TK for one in routings])
        chosen_TE = torch.zeros(len(ids_TK), 4).scatter_(1, ids_TK, 1.0)
        assert layer.tokens == diagnosis.data.tokens == len(ids_TK)
        assert layer.load == pytest.approx((chosen_TE.sum(0) / chosen_TE.sum()).tolist(), **DIGITS)
        assert layer.top1 == pytest.approx(float(probs_TE.amax(1).double().mean()), **DIGITS)
        want_EE = chosen_TE.T @ chosen_TE / len(chosen_TE)
        np.testing.assert_allclose(layer.coactivation, want_EE, rtol=1e-3)  # four digits are kept
        assert sum(layer.confidence_histogram) == pytest.approx(1, abs=1e-5)
        for group in range(3):
            part_TE = torch.cat(
                [torch.zeros(len(one.ids_TK), 4).scatter_(1, one.ids_TK, 1.0) for one in routings[group::3]]
            )
            want = (part_TE.sum(0) / part_TE.sum()).tolist()
            assert layer.load_by_group["abc"[group]] == pytest.approx(want, **DIGITS)


def test_batches_make_no_difference(text: Path, diagnosis: moesaic.Diagnosis) -> None:
    other = moesaic.diagnose(text, pico.data_for("llama"), batch_tokens=40)
    for one, two in zip(diagnosis.layers, other.layers, strict=True):
        assert one.load == two.load
        assert one.top_tokens == two.top_tokens
        assert one.entropy == pytest.approx(two.entropy, **DIGITS)
    assert diagnosis == moesaic.diagnose(text, pico.data_for("llama"))  # the same run, the same bits


def test_sampled_texts_go_where_the_model_sends_them(text: Path, diagnosis: moesaic.Diagnosis) -> None:
    rows = pico.data_for("llama")
    assert len(diagnosis.sample.texts) == 12
    tokenizer = transformers.AutoTokenizer.from_pretrained(text)
    labels = set()
    for sample in diagnosis.sample.texts:
        row = rows[int(sample.title.removeprefix("row "))]
        labels.add(row["label"])
        ids = tokenizer(row["text"])["input_ids"]
        assert "".join(sample.tokens) == tokenizer.decode(ids)
        (routings,) = passes(text, [{"input_ids": torch.tensor([ids])}])
        for routing in routings:
            assert sample.experts[routing.layer] == tuple(map(tuple, routing.ids_TK.tolist()))
            want = routing.weights_TK.numpy()
            np.testing.assert_allclose(sample.weights[routing.layer], want, atol=6e-4)  # three decimals are kept
    assert labels == {"a", "b", "c"}


def test_points_of_the_plane_are_tokens_of_the_sample(diagnosis: moesaic.Diagnosis) -> None:
    for layer in diagnosis.layers:
        first = [ids[0] for sample in diagnosis.sample.texts for ids in sample.experts[layer.path]]
        assert len(layer.geometry.centroids) == 4
        assert len(layer.geometry.tokens) > 20
        for _, _, expert, index in layer.geometry.tokens:
            assert expert == first[index]


def test_top_tokens_count_occurrences(text: Path, diagnosis: moesaic.Diagnosis) -> None:
    words = [word for row in pico.data_for("llama") for word in row["text"].split()]
    for layer in diagnosis.layers:
        assert any(layer.top_tokens)
        for expert in layer.top_tokens:
            for token, share, count in expert:
                everywhere = 24 if token == "<s>" else words.count(token)
                assert count == pytest.approx(share * everywhere, rel=1e-5)


def test_copies_are_copies_of_each_other_and_of_the_dense_ffn(root: Path) -> None:
    found = moesaic.diagnose(made(root, "llama", SparseUpcycling()), pico.data_for("llama"))
    for layer in found.layers:
        same = layer.weight_similarity
        assert same.dense is not None
        # Four and six digits are kept of float32 sums over 24 neurons.
        for table in (same.matched, same.plain, layer.output_cosine, layer.cka):
            np.testing.assert_allclose(table, np.ones((4, 4)), atol=1e-3)
        np.testing.assert_allclose(same.dense, np.ones(4), atol=1e-5)
        assert (layer.diversity, same.error) == (pytest.approx(0, abs=1e-6), 0.0)


def test_experts_that_give_nothing_are_told_in_plain_numbers(root: Path) -> None:
    found = moesaic.diagnose(made(root, "llama", ZeroRouted()), pico.data_for("llama"))
    json.dumps(found.to_json(), allow_nan=False)
    for layer in found.layers:
        assert layer.output_cosine == layer.cka == ((0.0,) * 4,) * 4
        assert layer.peak == (0.0,) * 4
        assert layer.weight_similarity.plain == pytest.approx(np.ones((4, 4)), abs=1e-3)  # gate and up are copies


def test_redrawn_experts_are_less_alike(diagnosis: moesaic.Diagnosis) -> None:
    for layer in diagnosis.layers:
        assert layer.weight_similarity.matched is not None
        assert layer.weight_similarity.dense is not None
        pairs = np.array(layer.weight_similarity.matched)
        assert (pairs >= np.array(layer.weight_similarity.plain) - 1e-4).all()
        assert pairs[~np.eye(4, dtype=bool)].max() < 0.9
        assert max(layer.weight_similarity.dense) < 0.9
        assert min(layer.peak) > 0


def test_a_dense_model_that_is_gone_is_missed_not_guessed(root: Path, text: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(text, tmp_path / "alone"))
    said: list[str] = []
    found = moesaic.diagnose(alone, ["the fox runs"], say=said.append)
    assert found.layers[0].weight_similarity.dense is None
    assert [line for line in said if "llama, is not compared with: it is not on this machine" in line] == said
    given = moesaic.diagnose(alone, ["the fox runs"], dense=root / "llama")
    assert given.layers[0].weight_similarity.dense is not None
    pico.bert(tmp_path / "llama")
    moesaic.diagnose(alone, ["the fox runs"], say=said.append)
    assert said[-1].partition("with: ")[2].endswith("holds other weights. Give its folder as `dense`.")


def test_a_loaded_model_is_left_as_it_was(text: Path, diagnosis: moesaic.Diagnosis) -> None:
    model = moesaic.load(text).train()
    assert moesaic.diagnose(model, pico.data_for("llama")) == diagnosis
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_text_models_have_data_of_their_own(text: Path) -> None:
    found = moesaic.diagnose(text, max_tokens=300)
    assert found.data.name == "built-in passages"
    assert "prose_de" in found.data.groups
    assert found.data.tokens >= 300


def test_counts_do_not_grow_with_the_data(text: Path) -> None:
    def held(count: int) -> int:
        model = moesaic.load(text)
        readers = open_readers(text, model)
        counting = Counting(model, readers, 0)
        for batch in plan_batches(open_data([pico.text(10, seed) for seed in range(count)]), readers, batch_tokens=200):
            counting.take(batch)
        found = counting.finish(())
        vectors = [one for each in found.samples.vectors.values() for one in (*each.input, *each.asked, *each.index)]
        tables = [*found.pairs._pairs.values(), *found.tokens._counts.values()]
        return sum(one.numel() for one in (*vectors, *tables))

    assert held(40) == held(160)


def test_images(root: Path) -> None:
    folder = made(root, "vit", DropUpcycling())
    found = moesaic.diagnose(folder, pico.data_for("vit"))
    assert (found.kind, found.data.tokens, len(found.sample.images)) == ("image", 35, 7)
    assert found.layers[0].top_tokens == ((),) * 4
    assert set(found.layers[0].load_by_group) == {"a", "b"}
    assert found.layers[0].weight_similarity.dense is not None
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for sample in found.sample.images:
        pixels = pico.data_for("vit")[int(sample.title.removeprefix("row "))]["image"]
        (routings,) = passes(folder, [dict(processor(images=[Image.fromarray(pixels)], return_tensors="pt"))])
        for routing in routings:  # the class token stands before the patches
            assert sample.experts[routing.layer] == tuple(map(tuple, routing.ids_TK[1:].tolist()))
        assert sample.grid == (2, 2)
        picture = Image.open(io.BytesIO(base64.b64decode(sample.png.partition(",")[2])))
        want = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(np.asarray(picture, float), np.asarray(want, float), atol=2)  # resized by torch


def test_speech(root: Path) -> None:
    folder = made(root, "whisper", DropUpcycling(), "decoder")
    found = moesaic.diagnose(folder, pico.data_for("whisper"))
    assert found.kind == "audio"
    assert list(found.experts) == ["model.decoder.layers.0.fc2", "model.decoder.layers.1.fc2"]
    clips = {"row 0": 0.3, "row 1": 0.7, "row 2": 1.0, "row 3": 1.0, "row 3 from 1 s": 1.0, "row 3 from 2 s": 0.5}
    assert {one.title: one.seconds for one in found.sample.audio} == clips
    assert {layer.tokens for layer in found.layers} == {found.data.tokens}
    for sample in found.sample.audio:
        assert len(sample.wave) == 200
        assert {len(rows) for rows in sample.experts.values()} == {len(sample.tokens)}
    tops = [token for expert in found.layers[0].top_tokens for token, _, _ in expert]
    assert set(tops) <= {"<s>", *pico.WORDS}
    assert tops


def test_both_towers_of_a_dual_encoder(root: Path) -> None:
    found = moesaic.diagnose(made(root, "clip", DropUpcycling()), pico.data_for("clip"))
    assert found.kind == "image-text"
    towers = {layer.path.partition(".")[0]: layer for layer in found.layers}
    assert set(towers) == {"text_model", "vision_model"}
    assert any(towers["text_model"].top_tokens)
    assert not any(towers["vision_model"].top_tokens)
    assert found.sample.texts
    assert found.sample.images
    assert {path.partition(".")[0] for one in found.sample.images for path in one.experts} == {"vision_model"}


def no_routers(folder: Path) -> Any:
    model = moesaic.load(folder)
    for layer in model.model.layers:
        layer.mlp.gate = torch.nn.Identity()
    return model


def broken(folder: Path, name: str) -> Any:
    """Return a model with one weight of its last layer that is not finite."""
    model = moesaic.load(folder)
    with torch.no_grad():
        model.model.layers[-1].mlp.get_parameter(name).view(-1)[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("dense", "LlamaForCausalLM: a model that is diagnosed must have MoE layers. It is dense. Make them with"),
        ("routers", "experts must have a router beside them .* Got none beside model.layers.0.mlp.experts"),
        ("kind", "list: the data must hold text for the model to read. Got none. Pass other data."),
        ("pictures", r"the model can read \(.txt, .md, .jsonl, .json\). Got files of .png only. Pass other data."),
        ("empty", "list: the data must hold text for the model to read. Got none. Pass other data."),
        ("logits", "model.layers.1.mlp: router logits must be finite. Got NaN or infinity on this data."),
        ("experts", "model.layers.1.mlp: what experts compute must be finite. Got NaN or infinity on this data."),
        (
            "nowhere",
            "a loaded model must come with the folder of its tokenizer or processor. Got none. Pass `processor`",
        ),
        ("no data", "a model that reads image must be given data. Got none. Pass a folder of them."),
    ],
)
def test_bad_input_is_refused_in_one_message(root: Path, text: Path, tmp_path: Path, case: str, message: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    cases: dict[str, Any] = {
        "dense": lambda: moesaic.diagnose(root / "llama", ["the fox"]),
        "routers": lambda: moesaic.diagnose(no_routers(text), ["the fox"]),
        "kind": lambda: moesaic.diagnose(text, [{"image": pico.picture(0)}]),
        "pictures": lambda: moesaic.diagnose(text, tmp_path),
        "empty": lambda: moesaic.diagnose(text, []),
        "logits": lambda: moesaic.diagnose(broken(text, "gate.weight"), ["the fox"]),
        "experts": lambda: moesaic.diagnose(broken(text, "experts.down_proj"), ["the fox"]),
        "nowhere": lambda: moesaic.diagnose(nameless(text), ["the fox"]),
        "no data": lambda: moesaic.diagnose(made(tmp_path, "vit", SparseUpcycling())),
    }
    with pytest.raises(MoesaicError, match=message) as raised:
        cases[case]()
    assert "\n" not in str(raised.value)


def nameless(folder: Path) -> Any:
    model = moesaic.load(folder)
    model.name_or_path = model.config.name_or_path = ""
    return model
