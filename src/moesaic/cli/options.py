"""The options of each command, as dataclasses; tyro makes the flags and the help from them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, get_type_hints

import tyro

from moesaic.architectures.sparse import Runtime
from moesaic.cli.parsing import parsed, taken
from moesaic.cli.usage import UsageError
from moesaic.convert import Options, Writing
from moesaic.errors import did_you_mean
from moesaic.experts.base import ExpertInit
from moesaic.method import Method, registry
from moesaic.routers.base import RouterInit
from moesaic.spec import Layers, MoESpec

if TYPE_CHECKING:
    from moesaic.informing import Knowledge

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Sparsity:
    """Options that plan and upcycle share."""

    num_experts: int = 8
    """Routed experts in each MoE layer."""
    top_k: int = 2
    """Routed experts for each token."""
    expert_size: Optional[int] = None
    """Width of one expert in neurons; the expert init's natural size if left out."""
    shared_expert: tyro.conf.FlagCreatePairsOff[bool] = False
    """Put an always-on expert beside the routed ones (the default of residual methods such as spri)."""
    no_shared_expert: tyro.conf.FlagCreatePairsOff[bool] = False
    """No shared expert."""
    layers: str = "all"
    """Which layers become MoE: all, every:N, first:N, last:N, or a list such as 3,7,11."""
    tower: Optional[str] = None
    """Only FFNs whose path has this word become MoE (vision, decoder, ...); splices into the model's own class."""
    target: Optional[str] = None
    """Model type of the sparse class, or `splice` for the model's own class with MoE layers in it; if left out, the
    preferred class that expresses the model exactly, or splice for kinds of models that have none."""
    runtime: Annotated[Runtime, tyro.conf.arg(name="for")] = "transformers"
    """What shall serve the model; targets that would be wrong or not load there are refused."""
    dtype: Optional[Literal["float32", "float16", "bfloat16"]] = None
    """Cast all weights; kept as they are if left out."""
    untie: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the output head although it is tied to the embedding (SGLang and llama.cpp's GLM4 need it)."""
    seed: int = 0
    """Of all randomness."""

    def conversion(self, experts: ExpertInit, router: RouterInit | None) -> Options:
        """Return what these options and methods ask for."""
        if self.shared_expert and self.no_shared_expert:
            raise UsageError("--shared-expert: it must not stand beside --no-shared-expert. Got both. Leave one out.")
        shared = True if self.shared_expert else False if self.no_shared_expert else None
        spec = MoESpec(self.num_experts, self.top_k, self.expert_size, shared, layers=Layers(self.layers))
        dtype = DTYPES[self.dtype] if self.dtype else None
        return Options(spec, experts, router, self.target, self.runtime, dtype, self.untie, self.seed, self.tower)


@dataclass(frozen=True)
class PlanOptions(Sparsity):
    """Show what would be made: classes, parameters, bytes, FLOPs, memory, time, advice. No weights are read."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")] = tyro.MISSING
    """A model folder, a config.json alone, a hub id, a GGUF file, or a name of `moesaic sources`."""
    tokens: Optional[float] = None
    """Tokens you can train on; sharpens the advice."""
    dense_tokens: Optional[float] = None
    """Tokens the dense model was trained on; sharpens the advice."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class UpcycleOptions(Sparsity):
    """Turn a dense model into a sparse one, and certify what changed."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")] = tyro.MISSING
    """A model folder, a hub id, a GGUF file, or a name of `moesaic sources`."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")] = tyro.MISSING
    """The folder to make."""
    data: Optional[Path] = None
    """A file or folder of what the model reads: methods that ask for activations calibrate on it, and the certificate
    compares on it. Built-in passages if left out, and no such methods."""
    stats: Optional[Path] = None
    """A file that `moesaic calibrate` wrote, for methods that ask for activations."""
    max_tokens: Optional[int] = None
    """Calibrate on about so many tokens of the data; on all if left out."""
    no_certify: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave the certificate out."""
    max_shard_size: str = "5GB"
    """No shard is larger; a number with B, KB, MB, GB or TB (powers of 1000)."""
    workers: Optional[int] = None
    """Threads; one per core, at most 8, if left out."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue an interrupted conversion; it ends in the same bytes."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace a folder that moesaic made."""
    durable: tyro.conf.FlagCreatePairsOff[bool] = False
    """Force all bytes to the disk before the folder gets its name."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Plan and check, but write nothing."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""

    def knowledge(self) -> Knowledge:
        """Return where methods that ask for activations learn them."""
        from moesaic.calibrating import Reading  # noqa: PLC0415  # a plan must not wait for them
        from moesaic.informing import Knowledge  # noqa: PLC0415

        if self.max_tokens is not None and self.data is None:
            raise UsageError("--max-tokens: it must go with --data, which it limits. Got it alone. Leave it out.")
        reading = None if self.max_tokens is None else Reading(max_tokens=self.max_tokens)
        return Knowledge(self.data, self.stats, reading)

    def writing(self) -> Writing:
        """Return how to write."""
        return Writing(size(self.max_shard_size), self.workers, self.resume, self.overwrite, self.durable)


@dataclass(frozen=True)
class CertifyOptions:
    """Compare a dense model with the MoE made from it, on what they read."""

    dense: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DENSE")] = tyro.MISSING
    """The dense model: folder, hub id, GGUF file or name."""
    moe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MOE")] = tyro.MISSING
    """The folder that moesaic made from it."""
    data: Optional[Path] = None
    """A text file; for a spliced model a file or folder of what it reads. Built-in passages if left out."""
    max_tokens: int = 1024
    """Tokens compared in all, at least 2; for a spliced model about so many, as it reads whole items."""
    layer_by_layer: tyro.conf.FlagCreatePairsOff[bool] = False
    """Hold one layer of a stock class in memory at a time; done without asking where both models do not fit."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class ArchitecturesOptions:
    """List dense families, their sparse targets, and composites; with --of, the FFNs of one model."""

    of: Optional[str] = None
    """A model folder, a config.json alone, a hub id, a GGUF file, or a name of `moesaic sources`."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --of, print JSON instead of tables."""


@dataclass(frozen=True)
class DemoOptions:
    """Upcycle SmolLM2-135M, certify it, ask dense and MoE the same, train both on the same text, show the experts."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")] = Path("moesaic-demo")
    """The folder to make."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the demo's earlier folder."""


def size(text: str) -> int:
    """Return a number of bytes written with a unit.

    >>> size("200MB")
    200000000
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([KMGT]?B)?", text.upper(), re.ASCII)
    number = int(float(found[1]) * units[found[2] or ""]) if found else 0
    if number < 1:
        raise UsageError(f"--max-shard-size: it must be a number with a unit, such as 5GB or 200MB. Got '{text}'.")
    return number


def parse(command: str, options: type[Any], args: list[str]) -> tuple[Any, ExpertInit, RouterInit | None]:
    """Parse a command that takes methods: `--experts spri --experts.rho 1e-3`.

    The names are read first, so that the parser (and its help) has exactly the chosen methods' fields.
    """
    args, experts = _named(args, "--experts", "spri", registry("moesaic.experts", ExpertInit))
    args, router = _named(args, "--router", None, registry("moesaic.routers", RouterInit))
    fields = [("experts", _plain(experts)), *([("router", _plain(router))] if router else [])]
    full = dataclasses.make_dataclass(options.__name__, fields, bases=(options,), frozen=True, kw_only=True)
    full.__doc__ = (options.__doc__ or "") + (
        "\n\n--experts METHOD and --router METHOD choose the inits (`moesaic methods` lists them); "
        "their fields follow as --experts.FIELD and --router.FIELD."
    )
    found: Any = parsed(full, command, args)
    return found, experts(**vars(found.experts)), router(**vars(found.router)) if router else None


def _plain(method: type[Method]) -> type[Any]:
    """Return a method's fields as a plain dataclass: tyro checks classes of a metaclass (ABC) by typeguard, too."""
    hints = get_type_hints(method)
    given = dataclasses.fields(method)
    fields = [(item.name, hints[item.name], dataclasses.field(default=item.default)) for item in given]
    plain = dataclasses.make_dataclass(method.__name__, fields, frozen=True)
    plain.__doc__ = method.__doc__
    return plain


def _named(args: list[str], flag: str, default: str | None, known: dict[str, type[Any]]) -> tuple[list[str], Any]:
    """Take `flag NAME` out of the arguments; return what is left and the method of that name."""
    rest, given = taken(args, flag)
    name = default if given is None else given
    if name is None:
        return rest, None
    if name not in known:
        raise UsageError(f"{flag}: it must be one of {', '.join(known)}. Got '{name}'.{did_you_mean(name, known)}")
    method: type[Method] = known[name]
    return rest, method
