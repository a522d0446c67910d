"""Corpora: fetching from registries, splitting by source, dealing languages, writing, and the user's own data."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from moesaic import corpora
from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.debian import DebianPackage
from moesaic.checkpoints.sources.npm import NpmPackage
from moesaic.cli import run
from moesaic.corpora import documents, stamps
from moesaic.corpora.base import PARTS, Corpus, Part, Row, Say, part_of
from moesaic.corpora.covost2 import Covost2
from moesaic.corpora.imagenet import Imagenet
from moesaic.corpora.stamps_speech import StampsSpeech
from moesaic.errors import SourceError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))


def silent(_: str) -> None:
    """Say nothing."""


# -- packages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of local packages."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("MOESAIC_FIND_PACKAGES", str(folder))
    return folder


@pytest.fixture
def deb(shelf: Path, tmp_path: Path) -> DebianPackage:
    """A Debian package whose script must never run."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: moesaic-test\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <n@example.org>\nDescription: t\n"
    )
    (tree / "DEBIAN" / "postinst").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tree / "DEBIAN" / "postinst").chmod(0o755)
    (tree / "usr" / "share" / "t").mkdir(parents=True)
    (tree / "usr" / "share" / "t" / "data.txt").write_text("payload")
    path = shelf / "moesaic-test_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, capture_output=True)
    return DebianPackage("moesaic-test", "1.0", cache.digest(path), 1, "MIT", "usr/share/t")


def test_a_debian_package_is_unpacked_as_data_once(deb: DebianPackage, shelf: Path, tmp_path: Path) -> None:
    folder = deb.unpacked(silent)
    assert (folder / "data.txt").read_text() == "payload"
    assert not (tmp_path / "ran").exists()
    (shelf / "moesaic-test_1.0_all.deb").unlink()
    assert deb.unpacked(silent) == folder


def test_another_package_of_that_name_is_refused(deb: DebianPackage) -> None:
    other = DebianPackage(deb.name, deb.version, "0" * 64, 1, "MIT", deb.root)
    with pytest.raises(SourceError, match=f"must have sha256 {'0' * 64}. Got {deb.sha256}. Nothing was unpacked"):
        other.unpacked(silent)
    assert not cache.folder(other.key).exists()


def tgz(path: Path, members: dict[str, bytes], links: dict[str, str]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return cache.digest(path)


def test_only_the_named_plain_files_of_an_npm_package_are_unpacked(shelf: Path, tmp_path: Path) -> None:
    members = {
        "package/img/a.png": b"a",
        "package/index.js": b"process.exit(1)",
        "package/../../../escaped.png": b"x",
        "package/img/../../up.png": b"x",
    }
    found = tgz(shelf / "moesaic-test-1.0.0.tgz", members, {"package/img/link.png": "/etc/passwd"})
    package = NpmPackage("moesaic-test", "1.0.0", found, 1, "MIT", ("*.png",))
    folder = package.unpacked(silent)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == ["img/a.png"]
    assert list(tmp_path.rglob("escaped.png")) == list(tmp_path.rglob("up.png")) == []


@pytest.mark.parametrize(
    ("package", "client"),
    [
        (DebianPackage("moesaic-test", "1.0", "0" * 64, 1, "MIT", "usr"), "apt-get"),
        (NpmPackage("moesaic-test", "1.0.0", "0" * 64, 1, "MIT", ("*",)), "npm"),
    ],
)
def test_a_missing_client_is_named(
    package: DebianPackage | NpmPackage, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=f"{re.escape(package.pin)}: {client} must be installed.*MOESAIC_CACHE"):
        package.unpacked(silent)


# -- splitting and writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy(Corpus):
    """Forty sources or fewer, two rows each."""

    licence: ClassVar[str] = "MIT"
    what: ClassVar[str] = "a toy"
    media: ClassVar[tuple[str, ...]] = ("image",)
    root: str = ""
    sources: int = 40

    def folder(self, say: Say) -> Path:
        return Path(self.root)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterable[Row]:
        for number in range(self.sources):
            if belongs(str(number)):
                for turn in range(2):
                    yield {"image": f"deep/{number}.png", "text": f"é {number}.{turn}", "source": str(number)}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    folder = tmp_path / "toy" / "deep"
    folder.mkdir(parents=True)
    for number in range(40):
        (folder / f"{number}.png").write_bytes(bytes([number]))
    return Toy(root=str(tmp_path / "toy"))


def test_every_source_is_tested_once_and_never_straddles_parts(toy: Toy) -> None:
    tested: Counter[str] = Counter()
    for fold in range(corpora.FOLDS):
        sources = {part: {row["source"] for row in toy.rows(part, fold)} for part in PARTS}
        assert sum(map(len, sources.values())) == len(set().union(*sources.values())) == 40
        tested.update(sources["test"])
    assert tested == Counter(map(str, range(40)))


def test_the_parts_have_their_shares() -> None:
    counts = Counter(part_of(str(number), 0) for number in range(10_000))
    for part, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        # three standard deviations of a share of 10,000 draws, and the 0.6 % by which 256 is no multiple of ten
        assert abs(counts[part] / 10_000 - share) < 0.014 + 0.006


def test_a_written_corpus_says_what_it_is_and_is_the_same_each_time(toy: Toy, tmp_path: Path) -> None:
    first, second = corpora.write(toy, tmp_path / "a", 2), corpora.write(toy, tmp_path / "b", 2)
    assert {path.name for path in first.iterdir()} == {*(f"{part}.jsonl" for part in PARTS), "corpus.json", "media"}
    for name in (*(f"{part}.jsonl" for part in PARTS), "corpus.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    card = json.loads((first / "corpus.json").read_text())
    for part, split in corpora.splits(toy, 2).items():
        assert cache.digest(first / f"{part}.jsonl") == split.sha256 == card["parts"][part]["sha256"]
        rows = [json.loads(line) for line in (first / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(rows) == split.rows
        for row, own in zip(rows, toy.rows(part, 2), strict=True):
            assert (first / row["image"]).read_bytes() == Path(own["image"]).read_bytes()
            assert row["text"] == own["text"]


def test_an_edit_of_the_copy_leaves_the_original(toy: Toy, tmp_path: Path) -> None:
    original = Path(toy.root) / "deep" / "7.png"
    copy = corpora.write(toy, tmp_path / "out") / "media" / "deep" / "7.png"
    copy.write_bytes(b"edited")
    assert original.read_bytes() == bytes([7])


def test_a_folder_in_use_is_left_alone(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("x")
    with pytest.raises(SourceError, match="must be new or empty"):
        corpora.write(toy, tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine"]


def test_nothing_is_left_of_a_corpus_that_could_not_be_written(toy: Toy, tmp_path: Path) -> None:
    (Path(toy.root) / "deep" / "7.png").unlink()
    (tmp_path / "place").mkdir()
    with pytest.raises(FileNotFoundError):
        corpora.write(toy, tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


def test_nothing_is_written_where_a_part_would_be_empty(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"test must have rows\. Got none by .*'sources': 1"):
        corpora.write(Toy(root=toy.root, sources=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- stamps ------------------------------------------------------------------------------------------------------


def ogg(seconds: float, content: int) -> bytes:
    """The parts of an Ogg Vorbis file that tell its length."""
    head = b"OggS" + bytes(24) + b"\x01vorbis" + bytes(5) + struct.pack("<I", 16_000)
    return head + bytes([content]) + b"OggS" + bytes(2) + struct.pack("<q", int(seconds * 16_000))


@pytest.fixture
def few_stamps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Ten stamps in French and Russian, the second a copy of the first's recording under another name."""
    folder = tmp_path / "stamps" / "food"
    folder.mkdir(parents=True)
    for number in range(10):
        lines = [f"Thing {number}.", f"fr.utf8=Chose {number}.", f"de.utf8=Ding {number}.", f"it.utf8=Cosa {number}."]
        (folder / f"t{number}.txt").write_text("\n".join(lines[: 2 if number == 9 else 4]), encoding="utf-8")
        for place, code in enumerate(("fr", "ru")):
            content = ogg(13 if number == 3 else 1, 2 * max(number, 1) + place)
            (folder / f"t{number}_desc_{code}.ogg").write_bytes(content)
    (folder / "nameless_desc_fr.ogg").write_bytes(ogg(1, 99))
    package = DebianPackage("few", "1", "0" * 64, 1, "MIT", "")
    cache.build(package.key, lambda partial: folder.parent.joinpath("food").rename(partial / "food") and None)
    monkeypatch.setattr("moesaic.corpora.stamps_speech.STAMPS", package)
    return cache.folder(package.key)


SPOKEN = ("fr", "ru")


def every_row(corpus: Corpus) -> list[Row]:
    return [row for part in PARTS for row in corpus.rows(part)]


def test_recordings_that_are_long_nameless_or_say_two_things_are_left_out(few_stamps: Path) -> None:
    rows = every_row(StampsSpeech(SPOKEN, written=("de", "it"), pairs=2, held_out_pairs=2))
    assert {row["source"] for row in rows} == {f"thing {number}" for number in (2, 4, 5, 6, 7, 8)}
    assert len(rows) == 6 * 2 * 2
    assert {Path(row["audio"]).parent for row in rows} == {few_stamps / "food"}
    one = next(row for row in rows if row["source"] == "thing 5" and row["language"] == "de" and row["spoken"] == "fr")
    assert one["text"] == "Ding 5."
    assert one["said"] == "Chose 5."
    assert one["english"] == "Thing 5."


def test_languages_are_dealt_evenly_and_never_the_spoken_one(few_stamps: Path) -> None:
    rows = [
        row for row in every_row(StampsSpeech(SPOKEN, written=("fr", "de", "it"), pairs=1)) if row["spoken"] == "fr"
    ]
    assert {row["language"] for row in rows} == {"de", "it"}
    train = StampsSpeech(SPOKEN, written=("de", "it"), pairs=1).rows("train")
    assert abs(Counter(row["language"] for row in train)["de"] * 2 - len(train)) <= 2  # one more for each voice


def test_an_unknown_language_is_refused(few_stamps: Path) -> None:
    with pytest.raises(
        ValueError, match=r"stamps_speech: written must be among de, en, fr, it. Got 'deu'. Did you mean"
    ):
        StampsSpeech(SPOKEN, written=("deu",)).rows("test")


def test_names_are_read_by_language(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("An apple.\n\nde.utf8=Ein Apfel.\npt_BR.utf8= Uma maçã. \nes.utf8=\nnoise\n", encoding="utf-8")
    assert stamps.names(file) == {"en": "An apple.", "de": "Ein Apfel.", "pt_BR": "Uma maçã."}
    file.write_text("\nde.utf8=Ohne Namen.\n", encoding="utf-8")
    assert stamps.names(file) == stamps.names(tmp_path / "none.txt") == {}


# -- documents ---------------------------------------------------------------------------------------------------


def test_the_headers_of_one_name_are_one_source_without_their_notice(tmp_path: Path) -> None:
    for arch in ("SSE", "NEON"):
        (tmp_path / arch).mkdir()
        (tmp_path / arch / "Packet.h").write_text("// A notice\n// of two lines\n\n#define X\n/* kept */\n")
    found = list(documents.DOMAINS["cpp"].read(tmp_path))
    assert {document.source for document in found} == {"cpp/Packet"}
    assert found[0].text.strip() == "#define X\n/* kept */"


# -- data of the user --------------------------------------------------------------------------------------------


def tsv(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row.split("|")) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def covost(tmp_path: Path) -> Path:
    """A pair with one file of all splits, and a pair with a file for each."""
    fr, en = tmp_path / "covost" / "fr", tmp_path / "covost" / "en"
    tsv(fr / "validated.tsv", "client_id|path|sentence", 'x|a.mp3|Un "chat', "x|b.mp3|Deux", "x|c.mp3|Trois")
    tsv(
        fr / "covost_v2.fr_en.tsv",
        "path|translation|split",
        "a.mp3|A cat|train_covost",
        "b.mp3|Two|dev",
        "c.mp3|Three|test",
        "gone.mp3|Not in Common Voice|test",
    )
    for split, name in (("train", "d"), ("dev", "e"), ("test", "f")):
        tsv(en / f"covost_v2.en_zh-CN.{split}.tsv", "path|sentence|translation|client_id", f"{name}.mp3|Hi|你好|x")
    for path in (*(fr / "clips" / f"{n}.mp3" for n in "abc"), *(en / "clips" / f"{n}.mp3" for n in "def")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "covost"


def test_covost_has_its_official_splits(covost: Path) -> None:
    found = {part: Covost2(str(covost)).rows(part) for part in PARTS}
    assert {part: sorted(Path(row["audio"]).stem for row in rows) for part, rows in found.items()} == {
        "train": ["a", "d"],
        "validation": ["b", "e"],
        "test": ["c", "f"],
    }
    (row,) = [row for row in found["train"] if row["spoken"] == "fr"]
    assert (row["text"], row["said"], row["language"]) == ("A cat", 'Un "chat', "en")
    (row,) = Covost2(str(covost), ("en_zh-CN",)).rows("test")
    assert (row["text"], row["language"]) == ("你好", "zh")


def test_what_covost_lacks_is_named(covost: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--data must be the folder that holds it. Got ''"):
        Covost2().rows("train")
    with pytest.raises(SourceError, match=r"must hold covost_v2.de_en.train.tsv or covost_v2.de_en.tsv. Got neither"):
        Covost2(str(covost), ("de_en",)).rows("train")
    (covost / "fr" / "clips" / "c.mp3").unlink()
    with pytest.raises(SourceError, match=r"covost_v2.fr_en.tsv:4: the recording must exist. Got no .*c\.mp3"):
        Covost2(str(covost)).rows("test")
    (covost / "fr" / "validated.tsv").unlink()
    with pytest.raises(SourceError, match=r"Common Voice's validated.tsv must be beside it"):
        Covost2(str(covost)).rows("train")
    tsv(covost / "en" / "covost_v2.en_zh-CN.dev.tsv", "path|sentence", "e.mp3|Hi")
    with pytest.raises(SourceError, match=r"must name the columns path, sentence, translation. Got none named transl"):
        Covost2(str(covost), ("en_zh-CN",)).rows("validation")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"it must hold translations such as covost_v2.fr_en.tsv"):
        Covost2(str(tmp_path / "empty")).rows("train")


@pytest.mark.parametrize("line", ["f.mp3", "f.mp3|Hi", "f.mp3|Hi|there|你好|x"])
def test_a_line_of_covost_that_is_short_or_long_is_refused(covost: Path, line: str) -> None:
    table = covost / "en" / "covost_v2.en_zh-CN.test.tsv"
    tsv(table, "path|sentence|translation|client_id", "f.mp3|Hi|你好|x", "", line)
    got = line.count("|") + 1
    with pytest.raises(SourceError, match=rf"test\.tsv:4: the line must have the 4 columns of the first\. Got {got}\."):
        Covost2(str(covost), ("en_zh-CN",)).rows("test")


@pytest.mark.parametrize("coding", ["latin-1", "utf-16"])
def test_tables_of_the_user_that_are_not_utf_8_are_refused(covost: Path, tmp_path: Path, coding: str) -> None:
    table = covost / "fr" / "covost_v2.fr_en.tsv"
    table.write_text("path\ttranslation\tsplit\na.mp3\tNoël\ttest\n", encoding=coding)
    line = {"latin-1": 2, "utf-16": 1}[coding]
    with pytest.raises(SourceError, match=rf"covost_v2\.fr_en\.tsv:{line}: the text must be UTF-8\. Got: .*Convert"):
        Covost2(str(covost), ("fr_en",)).rows("test")
    folder = pictures(tmp_path / "imagenet", "train/n1/a.JPEG")
    (folder / "LOC_synset_mapping.txt").write_text("n1 tench\nn2 Noël\n", encoding=coding)
    with pytest.raises(SourceError, match=rf"LOC_synset_mapping\.txt:{line}: the text must be UTF-8\. Got: .*Convert"):
        Imagenet(str(folder)).rows("train")


def test_tables_of_the_user_may_come_from_windows(covost: Path) -> None:
    table = covost / "en" / "covost_v2.en_zh-CN.test.tsv"
    table.write_bytes("\ufeffpath\tsentence\ttranslation\r\nf.mp3\tHi\t你好\r\n".encode())
    (row,) = Covost2(str(covost), ("en_zh-CN",)).rows("test")
    assert (row["said"], row["text"]) == ("Hi", "你好")


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_classes_of_one_name_stay_two_classes(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "train/n1/a.JPEG", "train/n2/b.JPEG", "train/n3/c.JPEG", "val/n2/d.JPEG")
    (folder / "LOC_synset_mapping.txt").write_text("n1 crane\nn2 crane\nn3 tench, Tinca tinca\n")
    corpus = Imagenet(str(folder))
    assert {(row["class"], row["label"], row["text"]) for row in corpus.rows("train")} == {
        ("n1", "crane (n1)", "crane"),
        ("n2", "crane (n2)", "crane"),
        ("n3", "tench", "tench"),
    }
    assert [row["label"] for row in corpus.rows("test")] == ["crane (n2)"]


def test_imagenet_takes_names_from_its_file(tmp_path: Path) -> None:
    pictures(tmp_path, "train/n1/a.JPEG", "train/n2/b.JPEG", "val/n1/c.JPEG", "val/readme.txt")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n1 tench, Tinca tinca\n")
    corpus = Imagenet(str(tmp_path))
    assert {(row["label"], row["class"]) for row in corpus.rows("train")} == {("tench", "n1"), ("n2", "n2")}
    assert [row["text"] for row in corpus.rows("test")] == ["tench"]
    assert corpus.rows("validation") == []
    (tmp_path / "val" / "n1" / "c.JPEG").unlink()
    with pytest.raises(SourceError, match="must hold a folder of pictures for each class"):
        corpus.rows("test")


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["sources"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in corpora.known())
    assert run(["sources", "emojis", str(tmp_path / "o")]) == 1
    assert "Did you mean 'emoji'?" in capsys.readouterr().err
    assert run(["sources", "minilm-l6", str(tmp_path / "o")]) == 2
    assert "Got a model" in capsys.readouterr().err
    assert run(["sources", "imagenet", str(tmp_path / "o"), "--fold", "1", "--data", str(tmp_path)]) == 2
    assert "the fold must be from 0 to 0. Got 1" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_command_writes(covost: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sources", "covost2", str(tmp_path / "o"), "--data", str(covost), "--pairs", "fr_en"]) == 0
    assert capsys.readouterr().out.strip() == f"Wrote {tmp_path / 'o'}."
    (line,) = (tmp_path / "o" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["audio"] == "media/fr/clips/a.mp3"
    assert (tmp_path / "o" / "media" / "fr" / "clips" / "a.mp3").is_file()
