"""Calibration data: where items come from, in which order, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from moesaic.calibration.data import Data, open_data
from moesaic.calibration.data.media import Picture, Sound
from moesaic.calibration.data.pieces import PIECE, piece, pieces
from moesaic.errors import CalibrationError

ALL = frozenset({"text", "image", "audio"})


def png(color: int = 90) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (12, 8), (color, 20, 30)).save(out, "png")
    return out.getvalue()


def wav(rate: int = 8000, seconds: float = 0.5, loudness: float = 0.5) -> bytes:
    out = io.BytesIO()
    wave = loudness * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(out, wave, rate, format="wav")
    return out.getvalue()


def found(data: Data) -> list[tuple[str | None, str | None]]:
    return sorted((item.label, item.text) for item in data.visit(0))


def test_folder_labels_are_sub_folders_or_stems(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.md").write_text("x = 1")
    (tmp_path / "prose.txt").write_text("Once.")
    (tmp_path / "pic.png").write_bytes(png())
    data = open_data(tmp_path, ALL)
    assert data.labels == ("code", "prose")
    assert {(item.name, item.label) for item in data.visit(0)} == {
        ("code/a.md:0", "code"),
        ("prose.txt:0", "prose"),
        ("pic.png", None),
    }


def test_only_kinds_that_the_model_reads_are_visited(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(png())
    assert [item.name for item in open_data(tmp_path, {"image"}).visit(0)] == ["b.png"]


def test_jsonl_json_and_rows(tmp_path: Path) -> None:
    rows = ["plain", {"text": "line\u2028break", "label": "b"}]
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8"
    )
    (tmp_path / "x.json").write_text(json.dumps(rows))
    want = [("b", "line\u2028break"), ("none", "plain")]
    for source in (tmp_path / "x.jsonl", tmp_path / "x.json", rows):
        data = open_data(source)
        assert data.labels == ("b",)
        assert sorted((item.label or "none", item.text or "") for item in data.visit(0)) == want


def test_rows_name_media_beside_them_for_models_that_read_no_text(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(png())
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"image": "sub/b.png", "label": "cat"}))
    (item,) = open_data(file, {"image"}).visit(0)
    assert item.label == "cat"
    assert item.image is not None
    assert item.image.pixels().size == Picture("b", png()).pixels().size


def test_prompts_of_mergekit(tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text("experts:\n- positive_prompts: [code, sum]\n- positive_prompts: [novel]\n  negative_prompts: [x]\n")
    data = open_data(file)
    assert data.labels == ("0:positive", "1:positive", "1:negative")
    assert found(data) == [("0:positive", "code"), ("0:positive", "sum"), ("1:negative", "x"), ("1:positive", "novel")]


def test_data_sets_of_the_datasets_library() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    assert open_data(rows).labels == ("no", "yes")
    assert found(open_data(rows)) == [("no", "b"), ("yes", "a")]
    unknown = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    assert [item.label for item in open_data(unknown).visit(0)] == [None]
    streamed = rows.to_iterable_dataset()
    assert open_data(streamed).count is None
    assert found(open_data(streamed)) == found(open_data(rows))


def test_media_of_the_datasets_library_are_left_encoded() -> None:
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": wav(), "path": None}]}).cast_column(
        "audio", datasets.Audio()
    )
    (item,) = open_data(rows).visit(0)
    assert item.audio is not None
    assert item.audio.samples(8000).shape == (4000,)


def test_map_style_data_are_shuffled_by_seed_and_iterators_are_not() -> None:
    texts = [str(number) for number in range(50)]
    orders = [[item.text for item in open_data(texts).visit(seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(texts)  # type: ignore[type-var]
    assert orders[0] != orders[2]
    assert orders[0] != texts
    assert [item.text for item in open_data(iter(texts)).visit(0)] == texts


def test_the_digest_tells_content_name_and_label() -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a", "label": "x"}, {"image": png()}, {"image": png(91)}]
    digests = {item.digest() for item in open_data(rows).visit(0)}
    assert len(digests) == len(rows)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=400)),
    st.integers(0, 60),
)
def test_pieces_are_the_file(tmp_path_factory: pytest.TempPathFactory, lines: list[str], repeat: int) -> None:
    file = tmp_path_factory.mktemp("pieces") / "f.txt"
    text = "\n".join(lines * repeat)
    file.write_bytes(text.encode())
    for whole in (False, True):
        assert "".join(piece(file, number, whole_lines=whole) for number in range(pieces(file))) == text


@pytest.mark.parametrize("line", ["é" * 60_000, "word " * 20_000])
def test_a_line_without_end_is_cut(tmp_path: Path, line: str) -> None:
    file = tmp_path / "f.txt"
    file.write_text(line, encoding="utf-8")
    parts = [piece(file, number) for number in range(pieces(file))]
    assert "".join(parts) == line
    assert max(len(part.encode()) for part in parts) < 2 * PIECE  # the last two may be one


def test_sound_is_resampled_and_mixed_down() -> None:
    wave = np.stack([np.sin(np.arange(8000) / 5), np.zeros(8000)], axis=1).astype(np.float32)
    got = Sound("s", wave, 8000).samples(16000)
    assert got.shape == (16000,)
    want = 0.5 * np.sin(np.arange(16000) / 10)
    # The resampling filter rings at both ends; inside it is accurate to its ripple of about 1e-3.
    torch.testing.assert_close(torch.tensor(got[500:-500]), torch.tensor(want[500:-500]).float(), atol=2e-3, rtol=0)


def test_pictures_come_from_bytes_pil_and_arrays() -> None:
    array = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for source in (array, array / 255, Image.fromarray(array)):
        got = np.asarray(Picture("p", source).pixels())
        # 8-bit values survive the way through 0-1 floats exactly
        torch.testing.assert_close(torch.tensor(got), torch.tensor(array), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_grey_pictures_of_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    grey = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, kind)
    got = np.asarray(Picture("p", file.getvalue()).pixels())
    assert got[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert (got == got[..., :1]).all()


def refused(source: object) -> str:
    with pytest.raises(CalibrationError) as caught:
        decode(source)
    return str(caught.value)


def decode(source: object) -> None:
    for item in open_data(source, ALL).visit(0):  # type: ignore[arg-type]
        if item.image:
            item.image.pixels()
        if item.audio:
            item.audio.samples(16000)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", png()[:48], "a.png: the image must be whole"),
        ("a.jpg", b"no image", "whole. Got UnidentifiedImageError: cannot identify image file. Fetch"),
        ("a.wav", wav(loudness=0), "a.wav: the recording must hold sound. Got 4000 samples with a peak of 0"),
        ("a.wav", wav(loudness=5e-5), "a.wav: the recording must hold sound"),
        ("a.wav", wav(seconds=0), "a.wav: the recording must hold sound. Got 0 samples"),
        ("a.ogg", b"no sound", "whole. Got LibsndfileError: Error opening: Format not recognised. Fetch"),
        ("a.txt", b"caf\xe9 noir", "a.txt: the text must be UTF-8. Got byte 0xe9 at position 3"),
        ("a.json", b'["caf\xe9"]', "a.json: the text must be UTF-8"),
        ("a.json", b"{}", "a.json: the file must hold a list. Got dict"),
        ("a.jsonl", b"{no", "a.jsonl:0:0: it must be JSON"),
        ("a.jsonl", b'{"audio": "gone.wav"}', "a.jsonl:0:0: the file 'gone.wav' must be there. Got: No such file"),
        ("a.jsonl", b'{"txt": "a"}', "a.jsonl:0:0: it must be a text, an image, or a dictionary"),
        ("a.yaml", b"- 1", "a.yaml: a YAML file must be one of mergekit-moe"),
        ("a.yaml", b"experts: [{positive_prompts: 3}]", "expert 0 must have a list of texts as positive_prompts"),
        ("a.yaml", b"experts: [{}]", "a.yaml: the experts must have prompts"),
        ("a.yaml", b"a: [", "a.yaml: the file must be YAML"),
        ("a.bin", b"x", "a.bin: data must be of a known kind"),
    ],
)
def test_bad_files_get_one_message(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def test_other_bad_data_get_one_message(tmp_path: Path) -> None:
    assert "the data must exist" in refused(tmp_path / "none")
    assert "Got no file of any kind" in refused(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(CalibrationError, match=r"a file that the model can read \(.png.*Got files of .txt only"):
        open_data(tmp_path, {"image"})
    assert "they must be one split" in refused({"train": []})
    assert "something to iterate over" in refused(3)
    assert "row 0: samples must come with their rate" in refused([{"audio": np.ones(9)}])
    assert "the samples must be finite" in refused([{"audio": {"array": np.array([np.nan, 1]), "sampling_rate": 9}}])


@pytest.mark.parametrize(("module", "row"), [("PIL.Image", {"image": png()}), ("soundfile", {"audio": wav()})])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, module: str, row: object) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'moesaic[media]'" in refused([row])
