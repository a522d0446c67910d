"""Finds the FFNs of every model type of transformers, and compares the spliced models with the dense ones.

For each type, a tiny twin of its default config is traced, then every FFN found is replaced by a MoE layer of four
identical experts, top-2, under a random router; all floating-point outputs are compared in float32. `python
benchmarks/coverage.py` prints the table and writes docs/coverage.md; given model types, it redoes their rows alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moesaic.errors import MoesaicError
from moesaic.modeling.recording import is_linear
from moesaic.modeling.spliced import MoELayer, splice
from moesaic.modeling.survey import NUMBER, Run, twin_of
from moesaic.modeling.tracing import model_class
from moesaic.modeling.twin import again, first_line, outputs, silent
from moesaic.sites import Site

CAUSES = {
    "expert of a MoE": "sparse already: all FFNs are experts of MoE layers",
    "It has no linears": "no linears at all",
    "None was found": "no FFN between linears (convolutions, state spaces, MoE layers of 3-D parameters, ...)",
    "input comes from .*(Norm|Conv)": "a norm or a convolution between the linears",
    "input comes from .*(XIELU|PReLU)": "an activation with learned parameters",
    "its input ": "not the product of a named activation",
    "requires the|ImportError": "needs a package that is not installed",
    "must have a model": "a part with no class of its own",
    "CPU time": "the twin is too slow",
    "could not be run alone": "the twin runs on no dummy inputs",
    "weights": "the twin is too large",
    "depends on its FFNs": "no output of what runs depends on its FFNs",
    "itself is unstable": "the dense twin itself is unstable",
    "": "the twin can't be built",
}
EXPERTS, TOP_K = 4, 2
EXACT = 1e-9  # the same in float64
TOLERANCE = 1e-5  # of max(1, largest output): some tens of float32 roundings
SECONDS, GIBIBYTES = 40, 7  # of CPU time and memory, for one model
TIME_SERIES = ("autoformer", "informer", "time_series_transformer")
DETECTORS = ("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer", "grounding-dino")
RESNET = {"model_type": "resnet", "out_features": ["stage4"]}
NEEDED: dict[str, dict[str, Any]] = {
    **{name: {"prediction_length": 4, "context_length": 8} for name in TIME_SERIES},
    **{name: {"use_timm_backbone": False, "backbone_config": RESNET} for name in DETECTORS},
    **{name: {"head_dim": 128} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "ministral")},
    "esm": {"vocab_size": 33},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "chameleon": {"vocabulary_map": {"<image>": 4, "IMGIMGA": 5}},
}
LINE = re.compile(r"\| \S+ \| \S* \| (exact|wrong|refused) \|")
OUT = Path(__file__).parent.parent / "docs" / "coverage.md"
HALVES = {
    "fused": lambda t: t,
    "fused_reversed": lambda t: torch.cat([t[t.shape[0] // 2 :], t[: t.shape[0] // 2]]),
    "interleaved": lambda t: torch.cat([t[::2], t[1::2]]),
    "interleaved_reversed": lambda t: torch.cat([t[1::2], t[::2]]),
}


@dataclass(frozen=True)
class Row:
    """What came of one model type."""

    model_type: str
    cls: str
    verdict: str  # exact, refused, wrong
    reason: str = ""
    sites: tuple[str, ...] = ()
    difference: float = 0.0
    seconds: float = 0.0

    @classmethod
    def read(cls, line: str) -> Row:
        """Read what `line` wrote."""
        name, model, verdict, sites, shown, reason = (cell.strip() for cell in line.split("|")[1:7])
        kinds = tuple(sites.split("; ")) if sites else ()
        return cls(name, model, verdict, reason, kinds, float(shown) if shown else 0.0)

    def line(self) -> str:
        shown = "" if self.verdict == "refused" else f"{self.difference:.0e}"
        reason = self.reason.replace("|", "/").replace("\n", " ")[:160]
        return f"| {self.model_type} | {self.cls} | {self.verdict} | {'; '.join(self.sites)} | {shown} | {reason} |"


def cover(model_type: str) -> Row:
    """Return the row of one model type, whatever happens."""
    start = time.perf_counter()
    row = _cover(model_type)
    return replace(row, seconds=time.perf_counter() - start)


def _cover(model_type: str) -> Row:
    cls = ""
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with silent():
            config = default_config(model_type)
        chosen = model_class(config)
        cls = chosen.__name__
        twin, seen = twin_of(chosen, config)
        sites, refused = seen.sites, seen.refused
        if not sites:
            linears = any(is_linear(module) for module in twin.modules())
            reasons = [f"{path}: {why}" for path, why in list(refused.items())[:2]]
            why = "; ".join(reasons) or ("None was found." if linears else "It has no linears.")
            return Row(model_type, cls, "refused", why)
        wrong, difference = compared(twin, sites, seen.runs)
        notes = [f"{path}: {why}" for path, why in refused.items()]
        return Row(model_type, cls, "wrong" if wrong else "exact", wrong or "; ".join(notes), kinds(sites), difference)
    except MoesaicError as error:
        lines = [line.strip(" -") for line in str(error).splitlines()]
        tried = lines[1:-1] or lines
        return Row(model_type, cls, "refused", " / ".join(dict.fromkeys([tried[0], tried[-1]])))
    except Exception as error:  # noqa: BLE001  # one model must not end the run
        return Row(model_type, cls, "refused", f"{type(error).__name__}: {first_line(error)}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _late(*_: object) -> None:
    raise TimeoutError(f"took more than {SECONDS} s of CPU time")


def default_config(model_type: str) -> PreTrainedConfig:
    """Return the type's default config, with what a few need besides."""
    return CONFIG_MAPPING[model_type](**NEEDED.get(model_type, {}))


def kinds(sites: dict[str, Site]) -> tuple[str, ...]:
    """Describe the FFNs, one for each kind of layer."""
    counts = Counter((NUMBER.sub("*", s.last), s.layout, s.act) for s in sites.values())
    return tuple(f"`{last}` {layout} {act}" for last, layout, act in counts)


def compared(twin: PreTrainedModel, sites: dict[str, Site], runs: list[Run]) -> tuple[str, float]:
    """Splice the twin; return what is wrong ("" if nothing), and the largest difference relative to max(1, output).

    Where float32 differs, float64 decides: a rounding can change which boxes or codes a model picks.
    """
    wrong, worst = compare(again(twin, torch.float32), sites, runs)
    if worst <= TOLERANCE:
        return wrong, worst
    try:
        still, exact = compare(again(twin, torch.float64), sites, runs)
    except RuntimeError as error:  # some models can't run in float64
        if noise(again(twin, torch.float32), runs) > TOLERANCE:
            raise MoesaicError("the dense twin itself is unstable: rounding its inputs changes its outputs") from error
        return wrong, worst
    return (wrong, worst) if still or exact > EXACT else ("", exact)


def noise(model: PreTrainedModel, runs: list[Run]) -> float:
    """Return by how much the dense outputs change when each weight changes by about one float32 rounding."""
    inputs = [(model.get_submodule(run.path), {k: to(v, model.dtype) for k, v in run.inputs.items()}) for run in runs]
    before = [outputs(*pair) for pair in inputs]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))
    after = [outputs(*pair) for pair in inputs]
    return max(difference(a, b) for x, y in zip(after, before, strict=True) for a, b in zip(x, y, strict=True))


def compare(model: PreTrainedModel, sites: dict[str, Site], runs: list[Run]) -> tuple[str, float]:
    """Compare all outputs of the model with and without MoE layers, in the model's dtype."""
    cast = [(model.get_submodule(run.path), {k: to(v, model.dtype) for k, v in run.inputs.items()}) for run in runs]
    dense = [outputs(module, inputs) for module, inputs in cast]
    layers = splice_all(model, sites)
    worst = 0.0
    for (module, inputs), want in zip(cast, dense, strict=True):
        got = outputs(module, inputs)
        if [t.shape for t in got] != [t.shape for t in want]:
            return "outputs have other shapes", float("inf")
        worst = max([worst, *(difference(a, b) for a, b in zip(got, want, strict=True))])
    if worst > TOLERANCE:
        return "outputs differ", worst
    if not any(moved(module, inputs, layers) for module, inputs in cast):
        raise MoesaicError("no output of what runs depends on its FFNs")
    return "", worst


def to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@torch.no_grad()
def moved(module: torch.nn.Module, inputs: dict[str, Any], layers: list[MoELayer]) -> bool:
    """Whether other experts give other outputs: equal outputs would show nothing if none depended on the experts."""
    before = outputs(module, inputs)
    for layer in layers:
        layer.experts.down_proj.mul_(torch.rand_like(layer.experts.down_proj))
    return not all(torch.equal(a, b) for a, b in zip(outputs(module, inputs), before, strict=True))


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest difference relative to max(1, largest output); infinities and NaN must agree in place."""
    if not got.numel():
        return 0.0
    if not torch.equal(got.isfinite(), want.isfinite()):
        return float("inf")
    finite = want.isfinite()
    got, want = got[finite].double(), want[finite].double()
    return float((got - want).abs().max() / max(1.0, float(want.abs().max()))) if got.numel() else 0.0


def splice_all(model: torch.nn.Module, sites: dict[str, Site]) -> list[MoELayer]:
    """Replace every FFN by identical experts under a random router; return the MoE layers."""
    modules = {path: model.get_submodule(path) for s in sites.values() for path in (*s.first, s.last)}
    splice(model, {"sites": [entry(site) for site in sites.values()]})
    for last, site in sites.items():
        fill(model.get_submodule(last), site, [modules[p] for p in site.first], modules[last])
    model.eval()
    return [model.get_submodule(last) for last in sites]


def entry(site: Site) -> dict[str, Any]:
    numbers = {"num_experts": EXPERTS, "top_k": TOP_K, "expert_size": site.width, "shared_size": 0}
    return site.to_json() | numbers | {"normalize_gates": True, "stored": [list(site.first), site.last]}


@torch.no_grad()
def fill(layer: MoELayer, site: Site, first: list[Any], last: Any) -> None:
    """Give every expert the dense FFN's weights."""
    arrange = HALVES.get(site.layout, lambda t: t)
    turn = (lambda t: t.T) if site.transposed else (lambda t: t)
    up = arrange(torch.cat([turn(module.weight) for module in first]))
    name = layer.experts.up_name
    getattr(layer.experts, name).copy_(up.expand(EXPERTS, *up.shape))
    layer.experts.down_proj.copy_(turn(last.weight).expand_as(layer.experts.down_proj))
    if site.first_bias:
        getattr(layer.experts, f"{name}_bias").copy_(
            arrange(torch.cat([module.bias for module in first])).expand(EXPERTS, -1)
        )
    if site.last_bias:
        layer.experts.down_proj_bias.copy_(last.bias.expand(EXPERTS, -1))
    layer.router.weight.normal_()


def page(rows: list[Row]) -> str:
    """Return docs/coverage.md."""
    counts = Counter(row.verdict for row in rows)
    ffns = sum(len(row.sites) for row in rows)
    totals = f"{counts['exact']} exact, with {ffns} kinds of FFN; {counts['wrong']} wrong; {counts['refused']} refused"
    head = f"""# Coverage of the splice

Written by `python benchmarks/coverage.py` with transformers {transformers.__version__} and torch {torch.__version__}.
A tiny twin of each type's default config; every FFN found is replaced by {EXPERTS} identical experts, top-{TOP_K},
under a random router. The difference is the largest in all float32 outputs, relative to max(1, largest output); exact
means {TOLERANCE:.0e} at most, and that other experts do change the outputs. Where a model picks boxes or codes by its
scores, one rounding changes what it picks: there the comparison is in float64, and exact means {EXACT:.0e}.

**{len(rows)} model types: {totals}.**

Why types are refused:

{refusals(rows)}

| model type | class | verdict | FFNs: last linear, layout, activation | difference | remarks |
|---|---|---|---|---:|---|
"""
    order = {"wrong": 0, "exact": 1, "refused": 2}
    rows = sorted(rows, key=lambda row: (order[row.verdict], row.model_type))
    return head + "".join(f"{row.line()}\n" for row in rows)


def refusals(rows: list[Row]) -> str:
    """Return the causes of refusals and their numbers, as a Markdown list."""
    causes = Counter(cause(row.reason) for row in rows if row.verdict == "refused")
    return "\n".join(f"- {count}: {why}" for why, count in causes.most_common())


def cause(reason: str) -> str:
    """Return the kind of a refusal."""
    return next((why for sign, why in CAUSES.items() if re.search(sign, reason)), "other")


def prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (GIBIBYTES << 30, GIBIBYTES << 30))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all unless given")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    old = [Row.read(line) for line in OUT.read_text().splitlines() if LINE.match(line)] if asked.types else []
    rows = [row for row in old if row.model_type not in asked.types]
    with multiprocessing.Pool(asked.workers, prepare, maxtasksperchild=20) as pool:
        for row in pool.imap_unordered(cover, asked.types or list(CONFIG_MAPPING)):
            rows.append(row)
            print(row.line(), f"{row.seconds:.1f} s", flush=True)
    print(Counter(row.verdict for row in rows))
    OUT.write_text(page(rows), encoding="utf-8")
    return int(any(row.verdict == "wrong" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
