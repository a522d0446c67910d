"""Zero-shot classes, retrieval and few shots on pico models, against transformers' own forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.calibration.ranks import device
from moesaic.errors import EvaluationError
from moesaic.evaluation import EvaluationTask, Place, evaluate
from moesaic.evaluation.encoders import open_encoder
from moesaic.evaluation.features import open_towers
from moesaic.evaluation.tasks.few_shot import FewShot
from moesaic.evaluation.tasks.retrieval import Retrieval
from moesaic.evaluation.tasks.zero_shot import ZeroShot, class_features
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.training.tasks.tables import open_table

CLASSES = ("red_fox", "dog", "hen", "sun", "sea", "big")
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
"""float32 sums in batches of another size."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for make in (pico.clip, pico.vit, pico.bert, pico.llama, pico.whisper):
        model = pico.load(make(folder / make.__name__))
        with torch.no_grad():
            for number, one in enumerate(model.parameters()):
                one.add_(0.2 * torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
        model.save_pretrained(folder / make.__name__)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 36 images of 6 classes, each class of a hue of its own, and the file that names them."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    rows = []
    for n in range(36):
        hue = np.array([(n % 6) * 40 + 20, (n % 3) * 80 + 20, (n % 2) * 160 + 40])
        pixels = (hue + random.normal(0, 12, (20, 20, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:02}.png")
        rows.append({"image": f"{n:02}.png", "text": pico.text(3, n), "label": CLASSES[n % 6], "source": f"s{n // 2}"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def place(folder: Path) -> Place:
    return Place(folder, device(), batch_size=5)


def own_features(folder: Path, file: Path, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what transformers' CLIP makes of all images and of each text alone, as its forward gives them."""
    model, tokenizer = pico.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    reader = transformers.AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(one).convert("RGB") for one in sorted(file.parent.glob("*.png"))]
    pixels = reader(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        made = [model(**tokenizer([text], return_tensors="pt"), pixel_values=pixels) for text in texts]
    return made[0].image_embeds, torch.cat([one.text_embeds for one in made])


def test_features_are_those_of_transformers(models: Path, pictures: Path) -> None:
    texts = [pico.text(2 + n % 4, n) for n in range(7)]
    towers, table = open_towers(place(models / "clip"), "test"), open_table(pictures)
    images_ND, texts_ND = own_features(models / "clip", pictures, texts)
    assert_close(towers.texts(texts), texts_ND, **CLOSE)
    assert_close(towers.images([table[n] for n in range(len(table))]), images_ND, **CLOSE)


def test_class_features_are_the_mean_over_templates_brought_to_length_1(models: Path, pictures: Path) -> None:
    towers = open_towers(place(models / "clip"), "test")
    found_CD = class_features(towers, ["fox", "dog"], ("the {} runs", "a {}"))
    _, own = own_features(models / "clip", pictures, ["the fox runs", "a fox", "the dog runs", "a dog"])
    mean_CD = torch.stack([own[:2].mean(0), own[2:].mean(0)])
    assert_close(found_CD, mean_CD / mean_CD.norm(dim=-1, keepdim=True), **CLOSE)


def test_zero_shot_agrees_with_transformers_own_logits(models: Path, pictures: Path) -> None:
    found = evaluate(models / "clip", ZeroShot(templates="a {}"), pictures, batch_size=5)
    names = sorted(CLASSES)
    images_ND, texts_ND = own_features(models / "clip", pictures, [f"a {name.replace('_', ' ')}" for name in names])
    order = (images_ND @ texts_ND.T).argsort(-1, descending=True)
    labels = torch.tensor([names.index(CLASSES[n % 6]) for n in range(36)])
    hits = order == labels[:, None]
    assert [row["predicted"] for row in found.records] == [names[n] for n in order[:, 0].tolist()]
    assert found.value("top-1") == pytest.approx(hits[:, 0].double().mean().item())
    assert found.value("top-5") == pytest.approx(hits[:, :5].any(1).double().mean().item())
    by_class = [found.value("top-5", name) for name in CLASSES]
    assert np.mean(by_class) == pytest.approx(found.value("top-5"))
    assert found.scores[0].interval.clusters == 18


def test_names_of_all_classes_come_from_a_file(models: Path, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"{one}\tthe {one}" for one in (*CLASSES, "and")))
    found = evaluate(models / "clip", ZeroShot(classes=str(file)), pictures)
    assert {row["label"] for row in found.records} == set(CLASSES)
    file.write_text("\n".join(CLASSES[1:]))
    with pytest.raises(EvaluationError, match=r"every label of the data\. Got no 'red_fox'"):
        evaluate(models / "clip", ZeroShot(classes=str(file)), pictures)


def test_retrieval_agrees_with_transformers_own_logits(models: Path, pictures: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    rows += [{**row, "text": f"the {row['text']}"} for row in rows[:9]]
    data = [{**row, "image": str(pictures.parent / row["image"])} for row in rows]
    found = evaluate(models / "clip", Retrieval(), data, batch_size=5, out=tmp_path / "out")
    texts = list(dict.fromkeys(row["text"] for row in rows))
    images_ND, texts_ND = own_features(models / "clip", pictures, texts)
    logits = images_ND @ texts_ND.T
    right = torch.zeros(logits.shape, dtype=torch.bool)
    for row in rows:
        right[int(row["image"][:2]), texts.index(row["text"])] = True
    for direction, scores, true in (("image to text", logits, right), ("text to image", logits.T, right.T)):
        for k in (1, 5, 10):
            hits = true.gather(1, scores.topk(k).indices).any(1)
            assert found.value(f"recall@{k}", direction) == pytest.approx(hits.double().mean().item())
        scaled = scores.double() * pico.load(models / "clip").logit_scale.double().exp().item()
        nats = -(scaled.softmax(1) * true).sum(1).log()
        # Features and losses are float32 there.
        assert found.value("loss", direction) == pytest.approx(nats.mean().item(), rel=1e-5)


@pytest.mark.parametrize("task", [ZeroShot(), Retrieval(), FewShot(shots=2, seeds=2)])
def test_what_was_interrupted_goes_on_to_the_same_numbers(
    models: Path, pictures: Path, tmp_path: Path, task: EvaluationTask
) -> None:
    whole = evaluate(models / "clip", task, pictures, out=tmp_path, batch_size=5)
    file = tmp_path / "records.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:8]))
    again = evaluate(models / "clip", task, pictures, out=tmp_path, batch_size=5, resume=True)
    assert again.to_json() == whole.to_json()
    assert sorted(map(str, again.records)) == sorted(map(str, whole.records))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_features_of_images_are_a_hidden_state(
    models: Path, pictures: Path, name: str, layer: int, pooling: Any
) -> None:
    table = open_table(pictures)
    encoder = open_encoder(place(models / name), table, "auto", layer, pooling)
    model = pico.load(models / name)
    reader = transformers.AutoImageProcessor.from_pretrained(models / name)
    images = [Image.open(one).convert("RGB") for one in sorted(pictures.parent.glob("*.png"))[:5]]
    with torch.no_grad():
        part = model.vision_model if name == "clip" else model
        out = part(**reader(images=images, return_tensors="pt"), output_hidden_states=True)
    state = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    wanted = state[:, 0] if pooling == "cls" else state[:, 1:].mean(1)
    found = torch.from_numpy(encoder.features([table[n] for n in range(5)]))
    assert_close(found, wanted.double(), **CLOSE)


@pytest.mark.parametrize("name", ["bert", "llama", "clip"])
def test_padding_takes_no_part_in_the_mean_of_a_text(models: Path, name: str) -> None:
    rows = [{"text": pico.text(2 + 5 * n, n), "label": "a"} for n in range(3)]
    table = open_table(rows)
    encoder = open_encoder(place(models / name), table, "text", -1, "mean")
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / name)
    together = torch.from_numpy(encoder.features([table[n] for n in range(3)]))
    model = pico.load(models / name)
    part = model.text_model if name == "clip" else model.base_model
    for n, row in enumerate(rows):
        ids = {
            key: one for key, one in tokenizer([row["text"]], return_tensors="pt").items() if key != "token_type_ids"
        }
        with torch.no_grad():
            alone = part(**ids).last_hidden_state.mean(1)[0]
        assert_close(together[n], alone.double(), **CLOSE)


def test_silence_behind_a_recording_takes_no_part_in_its_mean(models: Path, tmp_path: Path) -> None:
    rows = []
    for n in range(2):
        soundfile.write(tmp_path / f"{n}.wav", 0.5 * np.sin(np.arange(4000 + 8000 * n) / (5 + n)), 16000)
        rows.append({"audio": str(tmp_path / f"{n}.wav"), "label": str(n)})
    table = open_table(rows)
    encoder = open_encoder(place(models / "whisper"), table, "auto", -1, "mean")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "whisper")
    found = torch.from_numpy(encoder.features([table[0], table[1]]))
    for n in range(2):
        wave, _ = soundfile.read(rows[n]["audio"], dtype="float32")
        mel = extractor(wave, sampling_rate=16000, return_tensors="pt", padding="max_length")["input_features"]
        with torch.no_grad():
            state_TD = pico.load(models / "whisper").get_encoder()(mel).last_hidden_state[0]
        real = -(-len(wave) * len(state_TD) // 16000)
        assert_close(found[n], state_TD[:real].mean(0).double(), **CLOSE)


def test_few_shots_learn_and_are_the_same_every_time(models: Path, pictures: Path) -> None:
    task = FewShot(shots=2, seeds=3)
    found = evaluate(models / "vit", task, pictures)
    assert found.value("accuracy") > 0.5  # chance is 1/6; the hues are apart
    assert {len(row["predicted"]) for row in found.records} == {3}
    assert evaluate(models / "vit", task, pictures).records == found.records
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    odd = [{**row, "image": str(pictures.parent / row["image"]), "label": n * 7 % 5 < 2} for n, row in enumerate(rows)]
    first, second = (evaluate(models / "vit", FewShot(shots=3, seeds=3), odd, seed=seed).records for seed in (0, 1))
    assert first != second  # labels that no feature tells: each draw errs in its own way


def test_what_is_learned_from_is_not_tested_on(models: Path, pictures: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    data = [
        {**row, "image": str(pictures.parent / row["image"]), "part": "train" if n < 18 else "test"}
        for n, row in enumerate(rows)
    ]
    by_part = evaluate(models / "vit", FewShot(shots=3, seeds=2, classifier="prototype"), data)
    assert [row["id"].partition("#")[0] for row in by_part.records] == [f"row {n}" for n in range(18, 36)]
    file = tmp_path / "support.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in data[:18]))
    bare = [{**row, "part": None} for row in data[18:]]
    given = evaluate(models / "vit", FewShot(shots=3, seeds=2, classifier="prototype", support=str(file)), bare)
    assert [row["predicted"] for row in given.records] == [row["predicted"] for row in by_part.records]
    halves = evaluate(models / "vit", FewShot(shots=1, seeds=9), pictures)
    tested = {row["cluster"] for row in halves.records}
    assert {row["id"].partition("#")[0] for row in halves.records} == {
        f"rows.jsonl:{n}" for n, row in enumerate(rows, 1) if row["source"] in tested
    }
    assert 0 < len(tested) < 18


def test_a_moe_of_equal_experts_measures_as_the_dense_model(models: Path, pictures: Path, tmp_path: Path) -> None:
    moe = tmp_path / "moe"
    spec = moesaic.MoESpec(num_experts=4, top_k=2, shared_expert=False)
    moesaic.upcycle(models / "clip", moe, spec, experts=SparseUpcycling(), certify=False)
    for task in (ZeroShot(), Retrieval(), FewShot(shots=2, seeds=2, classifier="prototype")):
        dense, sparse = evaluate(models / "clip", task, pictures), evaluate(moe, task, pictures)
        # Counts are equal; of the loss, features are float32.
        expected = pytest.approx([one.interval.value for one in dense.scores], rel=1e-6)
        assert [one.interval.value for one in sparse.scores] == expected


def broken(file: Path, tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "broken.png").write_bytes(file.with_name("00.png").read_bytes()[:60])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{**row, "image": str(tmp_path / "broken.png" if n == 7 else file.parent / row["image"])} for n, row in
            enumerate(rows)]  # fmt: skip


Rows = Callable[[list[dict[str, Any]]], Any]
BAD: dict[str, tuple[str, EvaluationTask, Rows, str]] = {
    "no data": ("clip", ZeroShot(), lambda _: None, "Got no data"),
    "no label": ("clip", ZeroShot(), lambda rows: [{"image": rows[0]["image"]}], "no 'label'"),
    "empty label": ("clip", ZeroShot(), lambda rows: [{**rows[0], "label": ""}], "every row must have a class"),
    "one class": ("clip", ZeroShot(), lambda rows: rows[:1], "two classes or more"),
    "no towers": ("vit", ZeroShot(), lambda rows: rows, "image and a text tower"),
    "no towers to match": ("bert", Retrieval(), lambda rows: rows, "image and a text tower"),
    "no text": ("clip", Retrieval(), lambda rows: [{"image": one["image"]} for one in rows], "no 'text'"),
    "one image": ("clip", Retrieval(), lambda rows: rows[:1], "two different images"),
    "few": ("vit", FewShot(shots=7), lambda rows: rows, "must have 7 examples"),
    "one to learn": ("vit", FewShot(), lambda rows: [{**one, "label": "a"} for one in rows], "two classes or more"),
    "all train": ("vit", FewShot(), lambda rows: [{**one, "part": "train"} for one in rows], "another for the rest"),
    "unseen": (
        "vit",
        FewShot(shots=1),
        lambda rows: [{**one, "part": "test" if one["label"] == "hen" else "train"} for one in rows],
        r"Got none for \['hen'\]",
    ),
    "other input": ("bert", FewShot(shots=1, reads="image"), lambda rows: rows, "asked for: image"),
    "no input": (
        "vit",
        FewShot(shots=1),
        lambda rows: [{**one, "image": None} for one in rows],
        "what the model reads",
    ),
    "layer": ("vit", FewShot(shots=1, layer=3), lambda rows: rows, "from 0 to 2"),
    "no class token": ("llama", FewShot(shots=1, pooling="cls"), lambda rows: rows, "class token"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_message(models: Path, pictures: Path, case: str) -> None:
    model, task, change, message = BAD[case]
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    rows = [{**row, "image": str(pictures.parent / row["image"])} for row in rows]
    with pytest.raises(EvaluationError, match=message):
        evaluate(models / model, task, change(rows))


@pytest.mark.parametrize("task", [ZeroShot(), Retrieval(), FewShot(shots=2)])
def test_an_image_that_cannot_be_read_is_named(
    models: Path, pictures: Path, tmp_path: Path, task: EvaluationTask
) -> None:
    with pytest.raises(EvaluationError, match="row 7: the image must be whole"):
        evaluate(models / "clip", task, broken(pictures, tmp_path))
