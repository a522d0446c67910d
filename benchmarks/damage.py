"""Damaged inputs, by kind: exit codes, messages, and what was left behind.

    python -m benchmarks.damage [--messages]

Runs every case of tests/integration/damage in this process and prints one row per kind; `--messages` prints each
message too. Fails if a case ends otherwise than with exit 1 or 2 and one message that names the culprit.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.integration.damage import KINDS, Damage, attempt, save_models


def fault(damage: Damage, models: Path, work: Path, *, tell: bool) -> str:
    """Return what is wrong with the way a case ended; empty if nothing is."""
    try:
        outcome = attempt(damage, models, work)
    except Exception as error:  # noqa: BLE001  # whatever escapes is what is looked for
        return f"{type(error).__name__}: {error}"
    if tell:
        print(f"\n{damage.name}\n    {outcome.message.strip()}")
    finished = (work / "out").exists() or (work / "out.partial" / "config.json").exists()
    wrong = {
        f"exit {outcome.code}": outcome.code != damage.code,
        "culprit not named": damage.culprit not in outcome.message,
        "finished-looking output": finished,
        "output beside the message": bool(outcome.stdout),
    }
    return ", ".join(text for text, found in wrong.items() if found)


def main(*, tell: bool) -> None:
    """Print the table; fail if any case does."""
    faults: list[str] = []
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder) / "models")
        for kind, damages in KINDS.items():
            ends: dict[int, int] = defaultdict(int)
            for number, damage in enumerate(damages):
                work = Path(folder) / f"{kind} {number}"
                work.mkdir()
                if found := fault(damage, Path(folder) / "models", work, tell=tell):
                    faults.append(f"{kind}: {damage.name}: {found}")
                ends[damage.code] += 1
            rows.append(f"| {kind} | {len(damages)} | {ends[1]} | {ends[2]} |")
    total = sum(map(len, KINDS.values()))
    print("\n| damaged | cases | exit 1 | exit 2 |\n|---|---|---|---|", *rows, sep="\n")
    print(f"\n{total - len(faults)} of {total} ended with one message that names the culprit.", *faults, sep="\n")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main(tell="--messages" in sys.argv[1:])
