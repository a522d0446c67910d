"""Damage to config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.integration.damage.tools import Damage, edit_json

NAN, INF = float("nan"), float("inf")
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size", "max_position_embeddings")  # fmt: skip
NO_SIZES = (0, -1, 1.5, "64", True, [64], {}, NAN, INF, 1e30, 10**30)


def damages() -> Iterator[Damage]:
    yield from _sizes()
    yield from _values()
    yield from _keys()
    yield from _texts()
    yield from _composite()
    yield from _layers()
    yield from _spliced()


def _set(**changes: Any) -> Callable[[Path], None]:
    return lambda work: edit_json(work / "src" / "config.json", lambda config: config.update(changes))


def _sizes() -> Iterator[Damage]:
    for key in SIZES:
        for value in NO_SIZES:
            yield Damage(f"{key} = {value!r}", _set(**{key: value}), key)
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        yield Damage(f"no {key}", lambda work, k=key: edit_json(_file(work), lambda config: config.pop(k)), key)
    layers = "num_hidden_layers"
    wrong = {"hidden_size": 64, "intermediate_size": 96, layers: 3, "num_key_value_heads": 4, "vocab_size": 65}
    culprits = {layers: "model.layers.2.", "num_key_value_heads": "k_proj", "vocab_size": "embed_tokens"}
    for key, value in wrong.items():
        yield Damage(f"{key} = {value}, not the tensors'", _set(**{key: value}), culprits.get(key, "up_proj"))
    yield Damage(f"{layers} = 1, not the tensors'", _set(num_hidden_layers=1), "model.layers.1.")
    yield Damage("a million layers", _set(num_hidden_layers=10**6), layers)
    yield Damage("a billion layers", _set(num_hidden_layers=10**9), layers)
    yield Damage("qwen2: a billion layers", _set(num_hidden_layers=10**9), layers, model="qwen2")
    yield Damage("head_dim doubled", _set(head_dim=16), "q_proj")
    yield Damage("heads that do not divide", _set(num_attention_heads=5, head_dim=None), "num_attention_heads")
    yield Damage("key heads that do not divide", _set(num_key_value_heads=3), "num_key_value_heads")


def _values() -> Iterator[Damage]:
    bad: dict[str, tuple[Any, ...]] = {
        "rms_norm_eps": ("1e-6", NAN, INF, -1e-6, [], True, 10**400),
        "model_type": ("llamaa", None, 5, [], {}, "", "gpt2", "mixtral", "LLaMA", "\u202ellama"),
        "tie_word_embeddings": ("yes", 1, [], "false"),
        "attention_bias": ("yes", 0, []),
        "mlp_bias": ("no", 1),
        "hidden_act": ("swishh", 5, []),
        "num_experts": (8,),
        "num_local_experts": (4,),
    }
    for key, values in bad.items():
        for value in values:
            named = isinstance(value, str) and value.isascii() and key == "model_type"
            yield Damage(f"{key} = {str(value)[:20]!r}", _set(**{key: value}), value if named else key)
    yield Damage("attention_bias without biases", _set(attention_bias=True), "self_attn.q_proj.bias")
    yield Damage("mlp_bias, which no target has", _set(mlp_bias=True), "mlp_bias")
    ropes: dict[str, Any] = {
        "rope_theta negative": {"rope_theta": -1.0, "rope_type": "default"},
        "rope_theta zero": {"rope_theta": 0, "rope_type": "default"},
        "rope_theta text": {"rope_theta": "10000", "rope_type": "default"},
        "rope_theta NaN": {"rope_theta": NAN, "rope_type": "default"},
        "rope_theta list": {"rope_theta": [1], "rope_type": "default"},
        "rope_type a list": {"rope_theta": 1e4, "rope_type": ["default"]},
        "spiral rope_type": {"rope_theta": 1e4, "rope_type": "spiral"},
        "rope_theta infinite": {"rope_theta": INF, "rope_type": "default"},
        "rope_theta true": {"rope_theta": True, "rope_type": "default"},
        "partial_rotary_factor negative": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": -0.5},
        "partial_rotary_factor text": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": "x"},
        "rope_parameters a list": [1],
        "rope_parameters a text": "default",
    }
    for name, value in ropes.items():
        yield Damage(name, _set(rope_parameters=value), name.split()[0])
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    yield Damage("quantization_config", _set(quantization_config=quantised), "quantization_config")


def _keys() -> Iterator[Damage]:
    """Misspelt keys: the class would take its default and be another model."""
    for key, misspelt in {
        "hidden_size": "hiden_size",
        "intermediate_size": "intermediate_sizes",
        "num_hidden_layers": "num_hiden_layers",
        "num_attention_heads": "num_attention_head",
        "num_key_value_heads": "num_key_values_heads",
        "vocab_size": "vocabsize",
        "rms_norm_eps": "rms_norm_epss",
        "tie_word_embeddings": "tie_word_embedding",
        "max_position_embeddings": "max_positions_embeddings",
        "hidden_act": "hidden_actt",
        "rope_parameters": "rope_parameter",
        "attention_bias": "atention_bias",
        "model_type": "model_typ",
    }.items():

        def rename(config: dict[str, Any], old: str = key, new: str = misspelt) -> None:
            config[new] = config.pop(old)

        yield Damage(f"misspelt {key}", lambda work, r=rename: edit_json(_file(work), r), misspelt[:8])


def _texts() -> Iterator[Damage]:
    texts = {
        "empty": b"", "a list": b"[]", "null": b"null", "cut": b'{"model_type": "llama", "hidden', "latin-1":
        '{"model_type": "llamá"}'.encode("latin-1"), "UTF-16": "{}".encode("utf-16"), "nested lists": b"[" * 100_000,
        "nested objects": b'{"a":' * 50_000, "byte order mark": b"\xef\xbb\xbf{}", "an empty object": b"{}",
        "a long number": b'{"hidden_size": ' + b"9" * 5_000 + b"}", "single quotes": b"{'model_type': 'llama'}",
        "a trailing comma": b'{"model_type": "llama",}', "contradictory": b'{"hidden_size": 32, "hidden_size": 64}',
    }  # fmt: skip
    for name, text in texts.items():
        yield Damage(f"config is {name}", lambda work, t=text: _replace(work, t), "config.json")
    yield Damage("no config", lambda work: _file(work).unlink(), "config.json")
    yield Damage("config is a folder", lambda work: (_file(work).unlink(), _file(work).mkdir())[1], "config.json")
    yield Damage(
        "config is a dangling link",
        lambda work: (_file(work).unlink(), _file(work).symlink_to("none"))[1],
        "config.json",
    )


def _composite() -> Iterator[Damage]:
    for value in (None, [], "llama", {}, {"model_type": "llamaa"}):
        culprit = "llamaa" if isinstance(value, dict) and value else "text_config"
        yield Damage(f"llava: text_config = {value!r}", _set(text_config=value), culprit, model="llava")
    yield Damage(
        "llava: vocab_size of the text",
        lambda work: edit_json(_file(work), lambda config: config["text_config"].update(vocab_size=130)),
        "embed_tokens",
        model="llava",
    )


def _layers() -> Iterator[Damage]:
    """What each layer of a Qwen2 is: one word for each."""
    for value in (5, "full_attention", ["full_attention"], ["full_attention", "spiral"], [["full_attention"], {}]):
        yield Damage(f"qwen2: layer_types = {value!r}", _set(layer_types=value), "layer_types", model="qwen2")


def _spliced() -> Iterator[Damage]:
    """A class that has no MoE kin, whose config transformers reads."""
    bert = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    for key, values in {
        "hidden_size": ("x", None, [64]),
        "hidden_act": (5,),
        "num_hidden_layers": (10**9,),
        "architectures": (5, [5], "BertForMaskedLM", []),
    }.items():
        for value in values:
            text = json.dumps({**bert, key: value}).encode()
            yield Damage(f"bert: {key} = {value!r}", lambda work, t=text: _replace(work, t), key)


def _file(work: Path) -> Path:
    return work / "src" / "config.json"


def _replace(work: Path, text: bytes) -> None:
    _file(work).write_bytes(text)
