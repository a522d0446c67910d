"""Interrupted conversions: nothing unfinished loads, and what is resumed ends in the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration import pico
from tests.integration.disks import small_disk
from tests.integration.killing import contents

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.cli import run
from moesaic.convert import Options, Writing, convert
from moesaic.errors import CheckpointError
from moesaic.experts.base import ExpertInit
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.noise_upcycling import NoiseUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.spec import MoESpec

ROOT = Path(__file__).parents[2]
PLAIN = Writing()
METHODS: tuple[ExpertInit, ...] = (SparseUpcycling(), Spri(), DropUpcycling(), NoiseUpcycling())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "llama"
    pico.save_text(folder, "llama", num_hidden_layers=3)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def converted(source: Path, out: Path, experts: ExpertInit, writing: Writing = PLAIN, seed: int = 0) -> Path:
    convert(DenseCheckpoint.open(source), out, Options(MoESpec(4), experts, seed=seed), writing, name="llama")
    return out


@pytest.fixture(scope="module")
def kills(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """Kill many runs from a process of its own, which may fork; return what came of each, by job."""
    line = [sys.executable, "-m", "tests.integration.killing", str(source), str(tmp_path_factory.mktemp("kills"))]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return found


Kills = dict[str, list[dict[str, object]]]


def broken(kills: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the kills after which something unfinished loaded, or the resumed folder differed."""
    return [kill for kill in kills if kill["loads"] or not kill["whole"] or not kill["same"]]


def test_killed_at_random_moments(kills: Kills) -> None:
    """The published proof has 30 kills and the certificate on (benchmarks/kill.py); these are five quick ones."""
    assert len(kills["moments"]) == 5
    assert -signal.SIGKILL in {kill["code"] for kill in kills["moments"]}
    assert broken(kills["moments"]) == []


@pytest.mark.parametrize("job", ["events", "overwrites"])
def test_killed_before_every_file_operation(job: str, kills: Kills) -> None:
    """Every open, rename, remove and mkdir in the output is a moment to die; so is each step of the publication."""
    assert len(kills[job]) > 15
    assert {kill["code"] for kill in kills[job]} == {-signal.SIGKILL}
    assert broken(kills[job]) == []


def test_interrupted_by_the_user(kills: Kills) -> None:
    assert 3 in {kill["code"] for kill in kills["interrupts"]} <= {3, 0}
    assert broken(kills["interrupts"]) == []


@pytest.mark.parametrize("experts", METHODS, ids=lambda method: method.name())
def test_bytes_do_not_depend_on_the_number_of_threads(experts: ExpertInit, source: Path, tmp_path: Path) -> None:
    made = [
        contents(converted(source, tmp_path / str(n), experts, Writing(workers=n, max_shard_bytes=10**6)))
        for n in (1, 2, 4)
    ]
    assert made[0] == made[1] == made[2]
    assert len([name for name in made[0] if name.endswith(".safetensors")]) > 1


@pytest.mark.parametrize("experts", METHODS, ids=lambda method: method.name())
def test_another_seed_makes_other_bytes(experts: ExpertInit, source: Path, tmp_path: Path) -> None:
    first, second = (contents(converted(source, tmp_path / str(seed), experts, seed=seed)) for seed in (0, 1))
    assert first["model.safetensors"] != second["model.safetensors"]
    assert first["config.json"] == second["config.json"]


@pytest.mark.parametrize("experts", METHODS, ids=lambda method: method.name())
def test_tensors_do_not_depend_on_the_shards_of_the_source(experts: ExpertInit, source: Path, tmp_path: Path) -> None:
    pico.AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "whole")
    one = DenseCheckpoint.open(converted(tmp_path / "whole", tmp_path / "a", experts))
    many = DenseCheckpoint.open(converted(source, tmp_path / "b", experts, Writing(max_shard_bytes=300_000)))
    assert digests(one) == digests(many)


def digests(checkpoint: DenseCheckpoint) -> dict[str, tuple[object, str]]:
    found = {}
    for name, place in checkpoint.tensors.items():
        with place.file.open("rb") as stream:
            stream.seek(place.offset)
            found[name] = (place.info, hashlib.sha256(stream.read(place.info.nbytes)).hexdigest())
    return found


def test_a_small_disk_refuses_before_writing(source: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(CheckpointError, match=r"the disk must have [\d,]+ bytes free"):
            converted(source, disk / "moe", SparseUpcycling())
        assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_is_resumable(source: Path, tmp_path: Path) -> None:
    """Another process takes the space after it was found free; when it gives it back, the run continues."""
    whole = contents(converted(source, tmp_path / "whole", SparseUpcycling()))
    with small_disk(tmp_path / "disk", "3m") as disk:
        greedy = disk / "greedy"

        def fill(stage: str, _done: int, _total: int) -> None:
            if stage == "write" and not greedy.exists():
                with greedy.open("wb", buffering=0) as stream:
                    while stream.tell() < 3 << 20:
                        try:
                            stream.write(b"x" * 4096)
                        except OSError:
                            return

        options = Options(MoESpec(4), SparseUpcycling())
        with pytest.raises(CheckpointError, match=r"room for the output\. Got: No space left on device"):
            convert(
                DenseCheckpoint.open(source), disk / "moe", options, Writing(workers=1), name="llama", progress=fill
            )
        assert not (disk / "moe").exists()
        assert not (disk / "moe.partial" / "config.json").exists()
        greedy.unlink()
        assert contents(converted(source, disk / "moe", SparseUpcycling(), Writing(resume=True))) == whole
        assert [path.name for path in disk.iterdir()] == ["moe"]


def test_a_limit_on_file_sizes(source: Path, tmp_path: Path) -> None:
    """End to end, in a process of its own: one message, no traceback, nothing that loads."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    line = [sys.executable, "-m", "moesaic", "upcycle", str(source), str(tmp_path / "moe"), "--no-certify"]
    done = subprocess.run(
        [*line, "--experts", "sparse_upcycling"], preexec_fn=lower, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "room for the output. Got: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "moe").exists()
    assert not (tmp_path / "moe.partial" / "config.json").exists()


def test_a_shard_that_vanished_is_not_resumed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "moe"
    interrupt(source, out)
    next((tmp_path / "moe.partial").glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"as the interrupted run left it.* Got 0\."):
        converted(source, out, SparseUpcycling(), Writing(resume=True))
    assert not out.exists()


def test_another_conversion_is_not_resumed(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "moe")
    for experts, seed in ((SparseUpcycling(), 1), (Spri(), 0)):
        with pytest.raises(CheckpointError, match="--resume must continue the same conversion"):
            converted(source, tmp_path / "moe", experts, Writing(resume=True), seed)


def test_what_strayed_into_the_partial_folder_is_not_published(source: Path, tmp_path: Path) -> None:
    whole = contents(converted(source, tmp_path / "whole", SparseUpcycling()))
    interrupt(source, tmp_path / "moe")
    (tmp_path / "moe.partial" / "stray.safetensors").write_text("stray")
    (tmp_path / "moe.partial" / "folder").mkdir()
    assert contents(converted(source, tmp_path / "moe", SparseUpcycling(), Writing(resume=True))) == whole


def test_a_journal_of_an_earlier_boot_starts_from_zero(source: Path, tmp_path: Path) -> None:
    """A power cut may lose bytes that the journal lists; here they are overwritten on purpose."""
    whole = contents(converted(source, tmp_path / "whole", SparseUpcycling()))
    interrupt(source, tmp_path / "moe")
    journal = tmp_path / "moe.partial" / "journal"
    head, _, rest = journal.read_text().partition("\n")
    journal.write_text(json.dumps({**json.loads(head), "boot": "another"}) + "\n" + rest)
    shard = next((tmp_path / "moe.partial").glob("*.safetensors"))
    shard.write_bytes(bytes(shard.stat().st_size))
    assert contents(converted(source, tmp_path / "moe", SparseUpcycling(), Writing(resume=True))) == whole


def interrupt(source: Path, out: Path) -> None:
    """Leave a partial folder with some pieces done, as Ctrl-C does."""
    count = 0

    def stop(stage: str, _done: int, _total: int) -> None:
        nonlocal count
        count += stage == "write"
        if count > 20:
            raise KeyboardInterrupt

    options = Options(MoESpec(4), SparseUpcycling())
    with pytest.raises(KeyboardInterrupt):
        convert(DenseCheckpoint.open(source), out, options, Writing(workers=1), name="llama", progress=stop)
    assert (out.with_name("moe.partial") / "journal").read_text().count("\n") > 1


def test_two_conversions_do_not_write_one_folder(source: Path, tmp_path: Path) -> None:
    """The second is refused while the first runs, and the first ends undisturbed."""
    refused: list[str] = []

    def second(stage: str, _done: int, _total: int) -> None:
        if stage == "write" and not refused:
            for writing in (Writing(resume=True), Writing(overwrite=True)):
                with pytest.raises(CheckpointError) as caught:
                    converted(source, tmp_path / "moe", SparseUpcycling(), writing)
                refused.append(str(caught.value))

    options = Options(MoESpec(4), SparseUpcycling())
    convert(DenseCheckpoint.open(source), tmp_path / "moe", options, Writing(workers=1), name="llama", progress=second)
    assert len(refused) == 2
    assert all("one conversion must write it at a time" in message for message in refused)
    assert contents(tmp_path / "moe") == contents(converted(source, tmp_path / "again", SparseUpcycling()))


def test_an_overwritten_folder_is_replaced_whole(source: Path, tmp_path: Path) -> None:
    line = ["upcycle", str(source), str(tmp_path / "moe"), "--no-certify", "--experts", "sparse_upcycling"]
    assert run([*line, "--seed", "1", "--max-shard-size", "300KB"]) == 0
    assert run([*line, "--overwrite", "--durable"]) == 0
    assert sorted(contents(tmp_path / "moe")) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "moesaic.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]
