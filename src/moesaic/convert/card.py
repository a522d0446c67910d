"""The model card that goes into every output folder."""

from __future__ import annotations

from typing import Any

from moesaic.convert.conversion import Conversion


def model_card(conversion: Conversion, record: dict[str, Any]) -> str:
    """Return README.md: hub metadata, what was upcycled from what and how, the certificate, how to load it."""
    moe = conversion.shape.layer
    layers = ", ".join(map(str, conversion.shape.moe_layers))
    settings = ", ".join(f"{key} = {value}" for key, value in record["experts"].items() if key != "method")
    shared = f" and a shared expert of {moe.width}" if moe.shared_expert else ""
    auto = "AutoModelForCausalLM" if conversion.match.wrapper is None else "AutoModelForImageTextToText"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [moe, upcycling, moesaic]",
        "---",
        "",
        f"# {record['source']['name']}, upcycled to {moe.num_experts} experts",
        "",
        f"Made from the dense `{record['source']['model_type']}` model **{record['source']['name']}** by moesaic",
        f"{record['moesaic']}: a `{record['target']}` model with {moe.num_experts} experts of {moe.expert_size}",
        f"neurons, top-{moe.top_k}{shared}, in layers {layers}.",
        "",
        f"- experts: `{record['experts']['method']}`" + (f" ({settings})" if settings else ""),
        f"- router: `{record['router']['method']}`",
        f"- seed: {record['seed']}",
        "",
        "```python",
        f"from transformers import {auto}",
        f'model = {auto}.from_pretrained("PATH/TO/THIS/FOLDER")',
        "```",
        "",
        *certificate_lines(record.get("certificate")),
    ]
    return "\n".join(lines)


def certificate_lines(certificate: dict[str, Any] | None) -> list[str]:
    """Return the certificate as a Markdown table."""
    if certificate is None:
        return ["Not certified: converted with `--no-certify`.", ""]
    rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in certificate["summary"].items()]
    return ["## Certificate: dense against MoE", "", "| quantity | value |", "|---|---|", *rows, ""]
