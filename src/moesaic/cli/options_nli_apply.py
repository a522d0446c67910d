"""`moesaic nli apply`: its options, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro

from moesaic.cli import show
from moesaic.cli.parsing import parsed
from moesaic.cli.usage import UsageError

Kind = Literal["activation", "attention", "router", "norm"]
SHOWN = 3
"""Warnings that are printed; the worst come first."""


@dataclass(frozen=True)
class NliApplyOptions:
    """Put tables in the place of a model's nonlinear functions, and certify what that changes.

    The model runs without and with them on the same data. What tables were asked for is profiled at every site; a
    warning names each whose inputs leave the range in which its table is accurate.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    """Folder or name of a model: dense or MoE, stock or spliced."""
    data: Optional[str] = None
    """A file or folder of what the model reads; built-in passages if left out, random inputs where it reads no text."""
    max_tokens: int = 4096
    """Compared, about."""
    which: tuple[Kind, ...] = ("activation", "attention", "router", "norm")
    """Kinds of sites: activations, attention's softmax, scores of routers, the rsqrt of norms."""
    tables: str = "nli"
    """nli (those that come with moesaic), a folder of FUNC.json, or to compare: uniform, curvature, nn-lut-16,
    nn-lut-256."""
    range_reduction: bool = True
    """Bring inputs of rsqrt and reciprocal into a short range by a power of two first: accurate for any number. Mean
    squares of real models leave FP16, so that without it their norms break."""
    save: Optional[Path] = None
    """File for tables and sites, which `moesaic.interpolating.load(model, file)` applies again; no weight changes."""
    out: Optional[Path] = None
    """File for the whole record: certificate, sites, profiles."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def apply(args: list[str]) -> None:
    """Apply, certify, print."""
    options = parsed(NliApplyOptions, "nli apply", args)
    if options.max_tokens < 2:
        raise UsageError(f"--max-tokens: it must be 2 or more. Got {options.max_tokens}.")
    from moesaic.checkpoints.sources import resolve  # noqa: PLC0415  # help must not wait for them
    from moesaic.interpolating import apply as swap  # noqa: PLC0415
    from moesaic.interpolating import certify, choose, needed, save  # noqa: PLC0415
    from moesaic.lazy import torch  # noqa: PLC0415
    from moesaic.modeling.loading import load  # noqa: PLC0415

    folder = resolve(options.model, progress=show.say)
    model = load(folder, dtype=torch.float32)
    names = needed(model, options.which)
    done = swap(model, choose(options.tables, names, range_reduction=options.range_reduction), options.which)
    if options.save:
        save(done, options.save)
    with show.bars() as bars:
        found = certify(
            folder,
            done,
            options.data,
            max_tokens=options.max_tokens,
            progress=lambda step, total: bars("certify", step, total),
        )
    if options.out:
        options.out.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(found.to_json(), indent=2))  # noqa: T201
        return
    show.table(f"{options.model} without and with tables ({options.tables})", found.rows())
    for text in found.warnings[:SHOWN]:
        show.say(f"Warning: {text}")
    if len(found.warnings) > SHOWN:
        show.say(f"Warning: and {len(found.warnings) - SHOWN} more sites; --out FILE or --json has them all.")
    for file in filter(None, (options.save, options.out)):
        show.OUT.print(f"Wrote {file}.", soft_wrap=True)
