"""The unit's text, and its simulation by Icarus Verilog: every one of the 65,536 inputs, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moesaic.checkpoints.sources.debian import DebianPackage
from moesaic.cli import run
from moesaic.errors import NliError, SourceError
from moesaic.nli import Table, table_of, verilog

SILU = (-20.36, -17.11, -8.367, -1.976, -0.2556, -0.00724, 0.00722, 0.2285, 1.582, 10.47, 65504)
ICARUS = DebianPackage(
    "iverilog",
    "11.0-1.1+b1",
    "14d9d14dc8256fd89667fb68c3bd93f1c57310b9c95b33fb0d4b7719c887ae2f",
    megabytes=2,
    licence="GPL-2.0+",
    root="usr",
)
YOSYS = DebianPackage(
    "yosys",
    "0.23-6",
    "00cb3419d9c2e8964e588cbfa8a46b8d0ff4b391083a53a82d49ec1c2766330b",
    megabytes=3,
    licence="ISC",
    root="usr/bin",
)
TCL = DebianPackage(
    "libtcl8.6",
    "8.6.13+dfsg-2",
    "976c4235b816635e1756016f3adbabb634e8b97a9f6b97cf901be099e4fd2487",
    megabytes=1,
    licence="TCL",
    root="usr/lib",
)
SUMMARY = re.compile(r"(\w+): inputs (\d+), results (\d+), mismatches (\d+), latency (\d+), cycles (\d+)")
Simulate = Callable[..., dict[str, tuple[int, ...]]]


@pytest.fixture(scope="session")
def icarus() -> tuple[list[str], list[str]]:
    """Return compiler and simulator, installed or unpacked into the cache; skip where neither can be had."""
    if shutil.which("iverilog") and shutil.which("vvp"):
        return ["iverilog"], ["vvp"]
    root = unpacked(ICARUS)
    (parts,) = root.glob("lib/*/ivl")
    return [str(root / "bin/iverilog"), f"-B{parts}"], runs([str(root / "bin/vvp"), f"-M{parts}"])


@pytest.fixture(scope="session")
def yosys() -> list[str]:
    """Return Yosys, installed or unpacked into the cache; skip where neither can be had."""
    if installed := shutil.which("yosys"):
        return [installed]
    (library,) = unpacked(TCL).glob("*/libtcl8.6.so")
    return runs(["env", f"LD_LIBRARY_PATH={library.parent}", str(unpacked(YOSYS) / "yosys")])


def unpacked(package: DebianPackage) -> Path:
    try:
        return package.unpacked(print)
    except SourceError as error:
        pytest.skip(f"no {package.name}: {error}")


def runs(command: list[str]) -> list[str]:
    """Return a command, or skip where Debian's binary does not run on this system."""
    done = subprocess.run([*command, "-V"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[-1]} does not run here: {done.stderr}")
    return command


@pytest.fixture
def simulate(icarus: tuple[list[str], list[str]], tmp_path: Path) -> Simulate:
    """Return a function that runs the files of a folder: name -> inputs, results, mismatches, latency, cycles."""

    def simulated(files: dict[str, str], *plus: str) -> dict[str, tuple[int, ...]]:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        compiler, simulator = icarus
        subprocess.run([*compiler, "-g2005", "-o", "bench", "unit.v", "bench.v"], cwd=tmp_path, check=True)
        done = subprocess.run([*simulator, "bench", *plus], cwd=tmp_path, check=True, capture_output=True, text=True)
        return {name: tuple(map(int, numbers)) for name, *numbers in SUMMARY.findall(done.stdout)}

    return simulated


def silu() -> Table:
    return Table.of("silu", SILU)


def rsqrt() -> Table:
    return Table.of("rsqrt", np.geomspace(1, 4, 11), mul="power_of_two", reduction="rsqrt")


def test_two_functions_by_one_unit(simulate: Simulate, tmp_path: Path) -> None:
    """The second table goes into the unit that has computed by the first; exact, as both are integer arithmetic."""
    files = verilog.files(silu()) | verilog.files(rsqrt()) | {"bench.v": verilog.bench(silu(), rsqrt())}
    found = simulate(files, "+results")
    whole = (65536, 65536, 0, verilog.LATENCY, 65536)
    assert found == {"silu": whole, "rsqrt": whole}
    results = (tmp_path / "results.hex").read_text()
    assert results == files["silu.expected.hex"] + files["rsqrt.expected.hex"]


def test_cycles_without_an_input_change_nothing(simulate: Simulate) -> None:
    """Between inputs there are unknown bits, which must not reach a result; 3 cuts and 3 bins: the smallest unit."""
    table = Table.of("tanh", [-4.5, -1, 0.5, 4.5], bins=3)
    ((inputs, results, mismatches, latency, cycles),) = simulate(verilog.files(table), "+gaps").values()
    assert (inputs, results, mismatches, latency) == (65536, 65536, 0, verilog.LATENCY)
    assert cycles > 80_000


def test_a_wrong_table_is_seen(simulate: Simulate) -> None:
    """One bit of one value of the 259 changes some results: the bench can fail."""
    files = verilog.files(silu())
    words = files["silu.table.hex"]
    line = next(line for line in words.splitlines() if line.startswith("2_0080_"))
    changed = f"{line[:14]}{int(line[14], 16) ^ 1:x}{line[15:]}"
    ((_, results, mismatches, *_),) = simulate(files | {"silu.table.hex": words.replace(line, changed)}).values()
    assert results == 65536
    assert 0 < mismatches < 5000


def test_special_values() -> None:
    """NaN of any sign is 7E00, infinities are clamped, and both zeros give +0: what the simulation is held to."""
    table = silu()
    lines = verilog.expected(table).split()
    assert {lines[0x7E00], lines[0x7C01], lines[0xFFFF]} == {"7e00"}
    assert lines[0x7C00] == lines[0x7BFF] == "7bff"
    assert lines[0xFC00] == lines[0xFBFF]
    assert lines[0x0000] == lines[0x8000] == "0000"


def test_the_comparators_compute_their_lines(simulate: Simulate) -> None:
    """What the unit's area is compared with works: 16 lines, against exact arithmetic, all inputs."""
    nodes = np.linspace(-4, 4, 17).astype(np.float16).astype(np.float64)
    y = np.tanh(nodes)
    slopes = (np.diff(y) / np.diff(nodes)).astype(np.float16).astype(np.float64)
    slopes[[0, -1]] = 0
    intercepts = (y[:-1] - slopes * nodes[:-1]).astype(np.float16).astype(np.float64)
    words = verilog.line_words(nodes[:-1], slopes, intercepts)
    x = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64).clip(-65504, 65504)
    finite = np.nan_to_num(x)
    line = np.searchsorted(nodes[1:-1], finite, side="right")
    step = slopes[line] * finite
    exact = intercepts[line] + np.copysign(np.floor(np.abs(step) * 2.0**26) * 2.0**-26, step)
    results = np.where(np.isnan(x), np.uint16(0x7E00), (exact.astype(np.float16) + np.float16(0)).view(np.uint16))
    files = {
        "unit.v": verilog.comparator_design(16),
        "bench.v": verilog.bench_of("nli_comparators", ["lines"], words=48),
        "lines.table.hex": words,
        "lines.expected.hex": "".join(f"{code:04x}\n" for code in results),
    }
    assert simulate(files) == {"lines": (65536, 65536, 0, verilog.LATENCY, 65536)}


def test_text_is_the_same_every_time() -> None:
    assert verilog.files(silu()) == verilog.files(silu())
    assert verilog.comparator_design() == verilog.comparator_design(256)
    assert not [name for name, text in verilog.files(silu()).items() if re.search(r"@[A-Z]+@", text)]


def test_words_are_the_table() -> None:
    """Every number of the table is read back from the words that load it, exactly."""
    table = silu()
    words = [line.split()[0].split("_") for line in verilog.table_words(table).splitlines() if line[0] != "/"]
    read = {kind: [int(data, 16) for k, _, data in words if k == kind] for kind in "0123"}
    assert [index for k, index, _ in words if k == "2"] == [f"{i:04x}" for i in range(259)]
    assert tuple(np.array(read["0"], np.uint16).view(np.float16).tolist()) == table.cuts
    assert tuple(np.array(read["1"], np.uint32).view(np.float32).tolist()) == table.mul
    assert tuple(np.array(read["2"], np.uint16).view(np.float16).tolist()) == table.values
    assert read["3"] == [0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: verilog.unit(2), "3 cut points or more"),
        (lambda: verilog.unit(bins=0), "1 to 512 bins"),
        (lambda: verilog.comparator_design(100), "a power of two, 2 or more. Got 100"),
        (lambda: verilog.table_words(Table.of("tanh", [-4, -1, 1, 4], grid="bf16")), "in fp16. Got 'bf16'"),
        (lambda: verilog.bench(silu(), Table.of("tanh", [-4, -1, 1, 4])), "one size. Got [(4, 32), (11, 32)]"),
    ],
)
def test_what_can_not_be_made_is_refused(make: Callable[[], str], said: str) -> None:
    with pytest.raises(NliError, match=re.escape(said)):
        make()


def test_synthesis_finds_no_latch_and_no_loop(yosys: list[str], tmp_path: Path) -> None:
    """Yosys elaborates both designs: nothing undriven or driven twice, no loop, no memory of levels."""
    for name, text in (("nli_unit", verilog.unit()), ("nli_comparators", verilog.comparator_design(16))):
        (tmp_path / "design.v").write_text(text)
        checks = f"hierarchy -check -top {name}; proc; flatten; opt; check -assert; select -assert-none t:$dlatch"
        subprocess.run([*yosys, "-q", "-p", f"read_verilog design.v; {checks}"], cwd=tmp_path, check=True)


def test_the_command_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nli", "verilog", "silu", "--out", str(tmp_path / "named")]) == 0
    assert "README.md" in capsys.readouterr().out
    (tmp_path / "silu.json").write_text(json.dumps(table_of("silu").to_json()))
    assert run(["nli", "verilog", str(tmp_path / "silu.json"), "--out", str(tmp_path / "from_file")]) == 0
    for folder in ("named", "from_file"):
        written = {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
        assert written == verilog.files(table_of("silu"))
    assert {path.name for path in tmp_path.iterdir()} == {"named", "from_file", "silu.json"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["silo", "--out", "new"], "Got 'silo'. Did you mean"),
        (["silu", "--out", "used"], "used: the folder to write must be new or empty."),
        (["used/bf16.json", "--out", "new"], "a table must be in fp16. Got 'bf16'."),
        (["used/torn.json", "--out", "new"], "used/torn.json: a table must be JSON."),
    ],
)
def test_one_message_for_each_mistake(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("used").mkdir()
    Path("used/bf16.json").write_text(json.dumps(Table.of("tanh", [-4, -1, 1, 4], grid="bf16").to_json()))
    Path("used/torn.json").write_text("{")
    assert run(["nli", "verilog", *args]) == 1
    assert said in capsys.readouterr().err
    assert not Path("new").exists()
