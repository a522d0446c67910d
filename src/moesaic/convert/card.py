"""The model card that goes into every output folder: what it is, how it was made, what changed, how to use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesaic.convert.convertible import Convertible
from moesaic.convert.metadata import front_matter
from moesaic.convert.options import Options
from moesaic.method import Method
from moesaic.plan import FLOATS

RECIPES = {
    "AutoModelForCausalLM": "continued_pretraining",
    "AutoModelForImageClassification": "image_classification",
    "AutoModelForSpeechSeq2Seq": "speech_translation",
    "AutoModelForZeroShotImageClassification": "image_text_contrastive",
}
"""Class that loads a model -> the recipe that a card proposes."""


def model_card(conversion: Convertible, record: dict[str, Any], source: Path) -> str:
    """Return README.md: hub metadata, what was upcycled from what and how, the certificate, how to load and train it.

    Args:
        source: the dense model's folder, whose card says the licence.
    """
    moe, name = next(iter(conversion.layers.values())), record["source"]["name"]
    blocks = [
        front_matter(conversion, record, source),
        f"# {name.rpartition('/')[2]}, upcycled to {moe.num_experts} experts",
        _what(conversion, record),
        *_certificate(record.get("certificate")),
        *_use(conversion),
        *_making(conversion.options, record),
    ]
    return "\n\n".join(blocks) + "\n"


def _what(conversion: Convertible, record: dict[str, Any]) -> str:
    moe = next(iter(conversion.layers.values()))
    count = sum(output.info.count for output in conversion.plan.outputs)
    asleep = sum(
        (x.num_experts - x.top_k) * (2 + x.gated) * x.hidden * x.expert_size for x in conversion.layers.values()
    )
    shared = f", beside an always-on shared expert of {moe.shared_width}" if moe.shared_expert else ""
    return (
        f"A sparse Mixture-of-Experts (`{record['target']}`) made from the dense `{record['source']['model_type']}` "
        f"model **{record['source']['name']}** by moesaic {record['moesaic']}: {moe.num_experts} experts of "
        f"{moe.expert_size} neurons, top-{moe.top_k}{shared}, in {conversion.extent}; "
        f"{_millions(count)} parameters, of which a token uses {_millions(count - asleep)}.\n\n"
        f"Experts: `{_call(conversion.options.experts)}`. Router: `{_call(conversion.router)}`. Seed: {record['seed']}."
    )


def _certificate(certificate: dict[str, Any] | None) -> list[str]:
    if certificate is None:
        return ["## Certificate", "Not certified: converted with `--no-certify`."]
    rows = [f"| {key} | {value} |" for key, value in _escaped(certificate["summary"])]
    return [
        "## Certificate: dense against MoE, before any training",
        "\n".join(["| quantity | value |", "|---|---|", *rows]),
        "`moesaic.json` holds every number, layer by layer.",
    ]


def _escaped(rows: dict[str, str]) -> Iterator[tuple[str, str]]:
    for row in rows.items():
        key, value = (cell.replace("|", "\\|") for cell in row)
        yield key, value


def _use(conversion: Convertible) -> list[str]:
    auto, reader = conversion.loading
    trusting = ", trust_remote_code=True" if conversion.code else ""
    code = [
        "```python",
        f"from transformers import {auto}, {reader}",
        "",
        'folder = "PATH/TO/THIS/MODEL"',
        f"model = {auto}.from_pretrained(folder{trusting})",
        f"{reader.removeprefix('Auto').lower()} = {reader}.from_pretrained(folder{trusting})",
    ]
    if reader == "AutoTokenizer" and "router_aux_loss_coef" in conversion.config:
        code += ["", "model.config.output_router_logits = True  # in training: adds the load-balancing loss"]
    files = " and ".join(f"`{file.name}`" for file in conversion.code)
    ours = f" Its MoE layers are in {files}; `moesaic.load(folder)` takes moesaic's own instead." if files else ""
    return [
        "## Use",
        "\n".join([*code, "```"]),
        f"Upcycling is a start: experts specialise in training, with any trainer of transformers models.{ours}",
        f"```\nmoesaic train {RECIPES.get(auto, 'RECIPE')} PATH/TO/THIS/MODEL --data DATA --out RUN\n```",
    ]


def _making(options: Options, record: dict[str, Any]) -> list[str]:
    shards = "\n".join(f"{digest}  {file}" for file, digest in record["source"]["sha256"].items())
    command = command_line(options, record["source"]["name"])
    repeat = (
        ["```", command, "```"] if command else ["In Python, with a method or gates of its own; see `moesaic.json`."]
    )
    return ["## How it was made", "\n".join(repeat), "From these files (sha256):", f"```\n{shards}\n```"]


def command_line(options: Options, source: str) -> str | None:
    """Return the command that repeats a conversion, defaults left out; None where the command line can't say it."""
    spec = options.spec
    methods: list[tuple[str, Method]] = [("experts", options.experts)]
    methods += [("router", options.router)] if options.router else []
    if not spec.normalize_gates or any(not type(m).__module__.startswith("moesaic.") for _, m in methods):
        return None
    words = ["moesaic upcycle", source, "OUT", f"--num-experts {spec.num_experts}", f"--top-k {spec.top_k}"]
    if spec.expert_size is not None:
        words.append(f"--expert-size {spec.expert_size}")
    if spec.shared_expert is not None:
        words.append("--shared-expert" if spec.shared_expert else "--no-shared-expert")
    words.append(f"--layers {spec.layers.rule}")
    for kind, method in methods:
        words += [f"--{kind} {method.name()}", *(f"--{kind}.{word}" for word in _flags(method))]
    words += [f"--target {options.target}"] if options.target else []
    words += [f"--tower {options.tower}"] if options.tower else []
    words += [f"--for {options.runtime}"] if options.runtime != "transformers" else []
    words += [f"--dtype {FLOATS[options.dtype]}"] if options.dtype else []
    words += ["--untie"] if options.untie else []
    words += [f"--seed {options.seed}"] if options.seed else []
    return " ".join(words)


def _changed(method: Method) -> dict[str, Any]:
    usual = type(method)().settings()
    return {key: value for key, value in method.settings().items() if value != usual[key]}


def _flags(method: Method) -> Iterator[str]:
    for key, value in _changed(method).items():
        flag = key.replace("_", "-")
        yield (flag if value else f"no-{flag}") if isinstance(value, bool) else f"{flag} {value}"


def _call(method: Method) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in method.settings().items())
    return f"{method.name()}({settings})"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
