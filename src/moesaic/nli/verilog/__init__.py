"""The engine as a circuit: Verilog-2005, the words that load a table into it, and a bench that checks every input.

`unit` is the four-stage engine, the same netlist for every function; `comparator_design` is what it is compared with.
Both have the same ports, and give a result every cycle, `LATENCY` cycles after its input. Text in, text out: no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files as resources

from moesaic.errors import NliError, brief
from moesaic.lazy import np
from moesaic.nli.engine import Interpolated
from moesaic.nli.table import Table

LATENCY = 5
"""Clock cycles from an input to its result: one for each stage, and one to round."""
REDUCTIONS = ("none", "rsqrt", "reciprocal", "sqrt")
"""Range reductions, as the unit numbers them."""


def unit(cuts: int = 11, bins: int = 32) -> str:
    """Return the four-stage engine for so many cut points, and chords of each inner interval.

    Raises:
        NliError: where there are fewer than 3 cut points, or bins are not 1 to 512.

    >>> "module nli_unit" in unit()
    True
    """
    if cuts < 3 or not 1 <= bins <= 512:
        raise NliError(
            f"nli verilog: a unit must have 3 cut points or more, and 1 to 512 bins. Got {cuts} and {bins}. "
            "Take 11 and 32."
        )
    return _filled("arithmetic.v") + "\n" + _filled("unit.v", M=cuts, BINS=bins)


def comparator_design(segments: int = 256) -> str:
    """Return the straightforward design: a comparator for each segment but the first, and y = slope x + intercept.

    It is NN-LUT's form with all numbers in FP16, the least that such a design can store. Memories, multiplication and
    rounding are the unit's blocks; there is no range reduction. `line_words` loads it.

    Reference: Yu et al. 2022, NN-LUT, arXiv 2112.02191.

    Raises:
        NliError: where `segments` is no power of two.
    """
    if segments < 2 or segments & (segments - 1):
        raise NliError(f"nli verilog: segments must be a power of two, 2 or more. Got {segments}. Take 256.")
    return _filled("arithmetic.v") + "\n" + _filled("comparators.v", SEGMENTS=segments)


def bench(*tables: Table) -> str:
    """Return a test bench that loads each table in turn into one unit, and compares the results of all inputs.

    It reads NAME.table.hex and NAME.expected.hex (`table_words`, `expected`), where NAME is the table's function.

    Raises:
        NliError: where the tables are not of one size.
    """
    sizes = {(len(table.cuts), table.bins) for table in tables}
    if len(sizes) != 1:
        raise NliError(
            f"nli verilog: the tables of a bench must have one size. Got {sorted(sizes)}. Make one for each."
        )
    return bench_of("nli_unit", [table.function for table in tables], _count(table_words(tables[0])))


def bench_of(module: str, names: Sequence[str], words: int) -> str:
    """Return the bench of either design, which `words` words load."""
    runs = (
        f"""        $readmemh("{name}.table.hex", words);
        $readmemh("{name}.expected.hex", expected);
        run("{name}");"""
        for name in names
    )
    return _filled("bench.v", UNIT=module, WORDS=words, RUNS="\n".join(runs))


def table_words(table: Table) -> str:
    """Return the words that load a table into the unit: kind, index and data in hexadecimal, one word a line.

    Raises:
        NliError: where the table is not in FP16.

    >>> table = Table.of("tanh", [-4.5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4.5])
    >>> table_words(table).splitlines()[1:3]
    ['0_0000_0000c480 // -4.5', '0_0001_0000c200 // -3.0']
    """
    if table.format != "fp16":
        raise NliError(f"nli verilog: a table must be in fp16. Got {brief(table.format)}. Make one: --format fp16.")
    return _words(
        ("cut point", _fp16(table.cuts), table.cuts),
        ("bins per unit", np.asarray(table.mul, np.float32).view(np.uint32), table.mul),
        ("value", _fp16(table.values), table.values),
        ("range reduction", [REDUCTIONS.index(table.reduction)], [table.reduction]),
    )


def line_words(cuts: Sequence[float], slopes: Sequence[float], intercepts: Sequence[float]) -> str:
    """Return the words that load `comparator_design`: each segment's first x, its slope and its intercept."""
    named = zip(("cut point", "slope", "intercept"), (cuts, slopes, intercepts), strict=True)
    return _words(*((name, _fp16(numbers), numbers) for name, numbers in named))


def expected(table: Table) -> str:
    """Return the emulator's results for the codes 0000 to FFFF, in hexadecimal, one a line."""
    return "".join(f"{code & 0xFFFF:04x}\n" for code in Interpolated(table).results.tolist())


def files(table: Table) -> dict[str, str]:
    """Return everything that is needed to check a table's unit, by file name."""
    name, words = table.function, table_words(table)
    return {
        "unit.v": unit(len(table.cuts), table.bins),
        "bench.v": bench(table),
        f"{name}.table.hex": words,
        f"{name}.expected.hex": expected(table),
        "README.md": _filled("README.md", NAME=name, WORDS=_count(words), LATENCY=LATENCY),
    }


def _words(*kinds: tuple[str, Iterable[int], Iterable[object]]) -> str:
    lines = []
    for kind, (name, data, said) in enumerate(kinds):
        lines.append(f"// {name}")
        lines += [f"{kind}_{i:04x}_{word:08x} // {what}" for i, (word, what) in enumerate(zip(data, said, strict=True))]
    return "\n".join(lines) + "\n"


def _count(words: str) -> int:
    return sum(not line.startswith("//") for line in words.splitlines())


def _fp16(numbers: Sequence[float]) -> list[int]:
    codes: list[int] = (np.asarray(numbers, np.float16) + np.float16(0)).view(np.uint16).tolist()  # -0 becomes +0
    return codes


def _filled(name: str, **values: object) -> str:
    """Return a text of this package with @KEY@ replaced."""
    text = (resources(__name__) / name).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
