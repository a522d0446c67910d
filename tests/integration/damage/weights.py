"""Damage to tensors: not finite, missing, extra, misshapen, of a dtype that is no float."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tests.integration.damage.tools import INDEX, Damage, edit_json, edit_tensors, shard_of

LAYER = "model.layers.1."
ROLES = (
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", f"{LAYER}input_layernorm.weight",
    f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.o_proj.weight", f"{LAYER}mlp.gate_proj.weight",
    f"{LAYER}mlp.up_proj.weight", f"{LAYER}mlp.down_proj.weight",
)  # fmt: skip
BIAS = f"{LAYER}self_attn.q_proj.bias"
TEXT = "language_model.model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, torch.Tensor]


def damages() -> Iterator[Damage]:
    yield from _not_finite()
    yield from _missing_and_extra()
    yield from _misshapen()
    yield from _composite()


def _edit(tensor: str, change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    return lambda work: edit_tensors(work, tensor, change)


def _not_finite() -> Iterator[Damage]:
    for n, (model, name) in enumerate(
        [("llama", role) for role in ROLES]
        + [(model, role) for model in ("llama-bf16", "llama-f16", "mistral") for role in ROLES[::4]]
        + [("qwen2", BIAS), ("llava", TEXT)]
    ):
        value = (float("nan"), float("inf"), -float("inf"))[n % 3]
        place = (0, -1)[n // 3 % 2]

        def poison(tensors: Tensors, name: str = name, value: float = value, place: int = place) -> None:
            tensors[name].view(-1)[place] = value

        yield Damage(f"{model}: {value} in {name}", _edit(name, poison), name, model=model)


def _missing_and_extra() -> Iterator[Damage]:
    for name in ROLES:
        yield Damage(f"missing {name}", _edit(name, lambda t, n=name: t.pop(n)), name)
        yield Damage(
            f"misspelt {name}", _edit(name, lambda t, n=name: t.update({n.replace("w", "vv"): t.pop(n)})), name
        )
    yield Damage("qwen2: missing bias", _edit(BIAS, lambda t: t.pop(BIAS)), BIAS, model="qwen2")
    anchor = "model.norm.weight"
    extra = ("lm_head.bias", f"{LAYER}mlp.up_proj.bias", "model.layers.2.mlp.up_proj.weight", "lora_A.weight",
             f"{LAYER}mlp.experts.0.up_proj.weight", "", " ", "модель.вес", "model.norm.weight ")  # fmt: skip
    for name in extra:
        yield Damage(f"extra tensor '{name}'", _edit(anchor, lambda t, n=name: t.update({n: torch.ones(8)})), name)
    strange = {"line\nbreak": "line", "bell\a and \x1b[31mred": "bell", "right-to-left \u202e": "right-to-left"}
    for name, culprit in strange.items():
        yield Damage(f"extra tensor {name!r}", _edit(anchor, lambda t, n=name: t.update({n: torch.ones(8)})), culprit)

    def double(work: Path) -> None:
        shard = shard_of(work, anchor)
        edit_tensors(work, ROLES[0], lambda t: t.update({anchor: torch.ones(32)}))
        edit_json(work / "src" / INDEX, lambda index: index["weight_map"].update({anchor: shard.name}))

    yield Damage("one tensor in two shards", double, anchor)


def _misshapen() -> Iterator[Damage]:
    up, norm = f"{LAYER}mlp.up_proj.weight", "model.norm.weight"
    shapes: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
        "transposed": (up, lambda t: t.T),
        "a row short": (up, lambda t: t[:-1]),
        "a column short": (up, lambda t: t[:, 1:]),
        "a row more": (up, lambda t: torch.cat([t, t[:1]])),
        "flat": (up, lambda t: t.reshape(-1)),
        "with a third dimension": (up, lambda t: t[None]),
        "empty": (up, lambda t: t[:0]),
        "without columns": (up, lambda t: t[:, :0]),
        "a scalar": (norm, lambda t: t[0]),
        "too long": (norm, lambda t: torch.cat([t, t])),
        "one layer's vocabulary": ("lm_head.weight", lambda t: t[:60]),
        "another vocabulary": ("model.embed_tokens.weight", lambda t: torch.cat([t, t[:3]])),
        "too few heads": (f"{LAYER}self_attn.k_proj.weight", lambda t: t[:8]),
        "int8": (up, lambda t: t.to(torch.int8)),
        "int64": (up, lambda t: t.to(torch.int64)),
        "uint8": (norm, lambda t: t.to(torch.uint8)),
        "bool": (norm, lambda t: t.to(torch.bool)),
        "float8 e4m3": (up, lambda t: t.to(torch.float8_e4m3fn)),
        "float8 e5m2": (norm, lambda t: t.to(torch.float8_e5m2)),
    }
    for label, (name, change) in shapes.items():
        yield Damage(f"{name} {label}", _edit(name, lambda t, n=name, c=change: t.update({n: c(t[n]).clone()})), name)


def _composite() -> Iterator[Damage]:
    embed, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    for name in (TEXT, head):
        yield Damage(f"llava: missing {name}", _edit(name, lambda t, n=name: t.pop(n)), name, model="llava")
    yield Damage("llava: missing embedding", _edit(embed, lambda t: t.pop(embed)), "embed_tokens", model="llava")
    stray = TEXT.replace("layers.1", "layers.9")
    yield Damage(
        "llava: a tenth layer", _edit(TEXT, lambda t: t.update({stray: t[TEXT].clone()})), stray, model="llava"
    )
    yield Damage("llava: transposed", _edit(TEXT, lambda t: t.update({TEXT: t[TEXT].T})), TEXT, model="llava")
