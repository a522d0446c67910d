"""Files beside the weights that go with them: which, from which sub-folders, and through which links."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesaic.checkpoints.side_files import carried, side_files

SENTENCE_ENCODER = ["1_Pooling/config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"]


def put(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    "left",
    [
        ["config.json", "moesaic.json", "report.json", "model.safetensors.index.json", "model.safetensors", "a.py"],
        ["onnx/config.json", "onnx/model.onnx"],  # the same weights in another layout
        ["coreml/package/Manifest.json", "coreml/package/Data/weight.bin"],
        ["checkpoint-5/config.json", "checkpoint-5/model.safetensors"],  # another model
        ["module/config.json", "module/code.py"],
        [".cache/download/tokenizer.json", "1_Pooling/.hidden.json", "1_Pooling/README.md"],
    ],
)
def test_other_files_are_left(left: list[str], tmp_path: Path) -> None:
    assert carried([*left, *SENTENCE_ENCODER]) == SENTENCE_ENCODER
    assert side_files(put(tmp_path, [*left, *SENTENCE_ENCODER])) == SENTENCE_ENCODER


def test_further_tokenizers_and_chat_templates_are_carried() -> None:
    names = ["additional_chat_templates/tool_use.jinja", "qformer_tokenizer/vocab.txt", "vocab.txt"]
    assert carried(reversed(names)) == names


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    private = put(tmp_path / "private", ["key.txt", "deep/key.txt"])
    model = put(tmp_path / "model", ["sub/vocab.txt", "other/config.json"])
    (model / "linked").symlink_to(private)
    (model / "sub" / "key.txt").symlink_to(private / "key.txt")
    (model / "sub" / "loop.txt").symlink_to("loop.txt")
    (model / "sub" / "same.txt").symlink_to("vocab.txt")
    (model / "sub" / "up").symlink_to(tmp_path)
    (model / "other" / "model.safetensors").symlink_to(private / "key.txt")  # weights, wherever they stand
    assert side_files(model) == ["sub/same.txt", "sub/vocab.txt"]


def test_the_hubs_cache_is_made_of_links(tmp_path: Path) -> None:
    repo = put(tmp_path / "models--org--name", [f"blobs/{number}" for number in range(4)])
    put(tmp_path, ["models--org--other/blobs/0"])
    snapshot = repo / "snapshots" / ("a" * 40)
    for number, name in enumerate(SENTENCE_ENCODER):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(repo / "blobs" / str(number))
    (snapshot / "1_Pooling" / "stray.json").symlink_to(tmp_path / "models--org--other" / "blobs" / "0")
    assert side_files(snapshot) == SENTENCE_ENCODER
