"""GGUF: what llama.cpp's converter does to a model is undone exactly; what can't be told from a file is refused.

`write_gguf` does as llama.cpp's convert_hf_to_gguf.py does for these families (names, order of q and k rows, Gemma's
norms, rotary factors); files of that converter itself were read back with logit difference 0 when this was written.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch.testing import assert_close

from moesaic.checkpoints.sources import resolve
from moesaic.checkpoints.sources.gguf.families import FAMILIES
from moesaic.errors import SourceError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SHORT, LONG = [1.0, 1.05, 1.25], [1.0, 2.5, 6.3]
MULTIPLIERS = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
EXTRAS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "llama tied, biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "rope_theta": 1e5}),
    "llama 3": ("llama", {"head_dim": 64, "rope_scaling": {"rope_type": "llama3"} | LLAMA3, "rope_theta": 5e5}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"rope_theta": 1e6}),
    "qwen2 yarn": (
        "qwen2",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "phi3": ("phi3", {"sliding_window": 5, "original_max_position_embeddings": 128}),
    "phi3 longrope": (
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
    "gemma": ("gemma", {"head_dim": 16}),
    "granite": ("granite", MULTIPLIERS),
    "olmo2": ("olmo2", {}),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))


def make_model(case: str) -> Any:
    model_type, extra = CASES[case]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | extra)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and model_type != "gemma" else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape) * 0.2)
    return model


def write_gguf(
    case: str,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tamper: Callable[[gguf.GGUFWriter, dict[str, np.ndarray[Any, Any]]], None] = lambda _, __: None,
) -> Any:
    """Write a pico model as llama.cpp would, and return it."""
    model = make_model(case)
    model_type, extra = CASES[case]
    architecture = "llama" if model_type == "mistral" else model_type
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, model.config, architecture, extra)
    tensors = dict(_tensors(model, model_type, architecture))
    tamper(writer, tensors)
    for name, array in tensors.items():
        matrix = array.ndim > 1 and kind != gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(array, kind) if matrix else array
        writer.add_tensor(name, data, raw_dtype=kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_metadata(writer: gguf.GGUFWriter, config: Any, architecture: str, extra: dict[str, Any]) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if architecture != "gemma":
        writer.add_rope_freq_base(extra.get("rope_theta", 10000.0))
    if "head_dim" in extra:
        writer.add_key_length(extra["head_dim"])
    if architecture == "phi3":
        writer.add_sliding_window(extra["sliding_window"] or 0)
        writer.add_rope_scaling_orig_ctx_len(extra["original_max_position_embeddings"])
        writer.add_rope_dimension_count(int(8 * extra.get("partial_rotary_factor", 1)))
    scaling = extra.get("rope_scaling", {})
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    for name, key in EXTRAS.items():
        if name in extra:
            writer.add_float32(f"{architecture}.{key}", extra[name])


def _tensors(model: Any, model_type: str, architecture: str) -> Any:
    config = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and (config.tie_word_embeddings or model_type == "gemma"):
            continue
        array = tensor.numpy()
        if model_type in ("llama", "mistral", "granite") and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if model_type == "gemma" and name.endswith("norm.weight"):
            array = array + 1
        module, _, ending = name.rpartition(".")
        yield f"{table.get_name(module)}.{ending}", array
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config.head_dim, config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(LONG, dtype=np.float32)
        yield "rope_factors_short.weight", np.array(SHORT, dtype=np.float32)


def _llama3_factors(head_dim: int, theta: float) -> np.ndarray[Any, Any]:
    factors = []
    for frequency in theta ** -(np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * math.pi / frequency
        smooth = (8192 / wavelength - 1) / 3
        inside = 1 / ((1 - smooth) / 8 + smooth)
        factors.append(1 if wavelength < 8192 / 4 else 8 if wavelength > 8192 else inside)
    return np.array(factors, dtype=np.float32)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(100).reshape(1, -1) % 60 + 3).logits
    return out


# -- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_model_written_as_gguf_comes_back(case: str, tmp_path: Path) -> None:
    model = write_gguf(case, tmp_path / "m.gguf")
    folder = resolve(str(tmp_path / "m.gguf"))
    back, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert_close(logits(back), logits(model), rtol=0, atol=1e-5)
    ours, theirs = back.config.to_dict(), model.config.to_dict()
    words = {"model_type", "sliding_window"} if case == "mistral" else set()
    compared = set(theirs) - words - {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert {name: ours[name] for name in compared} == {name: theirs[name] for name in compared}


def test_scaling_is_written_in_the_form_that_every_version_reads(tmp_path: Path) -> None:
    """transformers 5 adds keys to a config in memory that transformers 4 refuses on disk."""
    write_gguf("phi3 longrope", tmp_path / "m.gguf")
    config = json.loads((resolve(str(tmp_path / "m.gguf")) / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    assert "rope_parameters" not in config


def test_every_family_is_covered_here() -> None:
    assert {"llama" if kind == "mistral" else kind for kind, _ in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_matrices_stay_half_precision(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = write_gguf("llama", tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType[kind])
    folder = resolve(str(tmp_path / "m.gguf"))
    back = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        wanted = tensor.to(dtype) if tensor.ndim > 1 else tensor
        assert_close(back[name], wanted, rtol=0, atol=0)
    assert transformers.AutoConfig.from_pretrained(folder).dtype == dtype


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantised_matrices_become_the_numbers_they_stand_for(tmp_path: Path, kind: str) -> None:
    """In float32, so that nothing is rounded twice."""
    quantisation = gguf.GGMLQuantizationType[kind]
    model = write_gguf("qwen2", tmp_path / "m.gguf", kind=quantisation)
    back = load_file(resolve(str(tmp_path / "m.gguf")) / "model.safetensors")
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if array.ndim > 1:
            array = gguf.quants.dequantize(gguf.quants.quantize(array, quantisation), quantisation)
        assert_close(back[name], torch.from_numpy(array.copy()), rtol=0, atol=0)


def test_identical_files_are_converted_once(tmp_path: Path) -> None:
    write_gguf("llama", tmp_path / "m.gguf")
    (tmp_path / "elsewhere").mkdir()
    shutil.copyfile(tmp_path / "m.gguf", tmp_path / "elsewhere" / "copy.gguf")
    said: list[str] = []
    first = resolve(str(tmp_path / "m.gguf"), progress=said.append)
    assert resolve(str(tmp_path / "elsewhere"), progress=said.append) == first
    assert said == ["m.gguf: converting to safetensors, once"]


def test_digits_are_split_as_the_vocabulary_was_learned(tmp_path: Path) -> None:
    """Before a digit, two spaces are one token: transformers alone would cut them, llama.cpp and the original don't."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<|end|>", *sorted(alphabet), "ĠĠ"]

    def add_vocabulary(writer: gguf.GGUFWriter, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_types([3] + [1] * (len(tokens) - 1))
        writer.add_token_merges(["Ġ Ġ"])
        for name in ("token_embd.weight", "output.weight"):
            tensors[name] = np.resize(tensors[name], (len(tokens), SIZES["hidden_size"]))

    write_gguf("llama", tmp_path / "m.gguf", tamper=add_vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(str(tmp_path / "m.gguf")))
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12<|end|>").input_ids) == ["a", "ĠĠ", "1", "2", "<|end|>"]
    assert tokenizer.model_max_length == SIZES["max_position_embeddings"]


# -- refusals ----------------------------------------------------------------------------------------------------


def refuse(path: Path, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolve(str(path))
    assert not any((path.parent / "cache" / "sources").iterdir())


def test_an_unsupported_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama4")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(tmp_path / "m.gguf", r"must be one of llama, qwen2.*Got 'llama4'. Did you mean 'llama'")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            lambda w, _: w.add_float32("llama.attention.clamp_kqv", 3.0),
            "one that moesaic understands. Got llama.attention",
        ),
        (lambda w, _: w.add_uint16("split.count", 3), "must be one file. Got one of 3 parts"),
        (
            lambda _, t: t.update({"blk.0.extra.weight": t["output.weight"]}),
            "known tensors only.*\n.*blk.0.extra.weight",
        ),
        (lambda _, t: t.pop("blk.1.ffn_up.weight"), "model.layers.1.mlp.up_proj.weight is missing"),
        (lambda _, t: t.pop("token_embd.weight"), "must hold the tensor 'token_embd.weight'"),
        (lambda _, t: t.update({"output_norm.weight": np.ones(7, "f4")}), "model.norm.weight is of another shape"),
        (lambda _, t: t.update({"rope_freqs.weight": np.full(8, 3, "f4")}), "a table of factors that is not Llama 3's"),
        (lambda w, _: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "rotary scaling must be.*Got 'longrope'"),
    ],
)
def test_what_would_be_another_model_is_refused(tmp_path: Path, tamper: Any, message: str) -> None:
    write_gguf("llama", tmp_path / "m.gguf", tamper=tamper)
    refuse(tmp_path / "m.gguf", message)


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    write_gguf("granite", tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes().replace(b"granite.logit_scale", b"granite.logit_scalf")
    (tmp_path / "m.gguf").write_bytes(data)
    refuse(tmp_path / "m.gguf", "Got granite.logit_scalf")


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 60, 300, 900, -1, -5000])
def test_a_file_cut_short_is_one_clear_message(tmp_path: Path, kept: int) -> None:
    write_gguf("llama", tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:kept])
    refuse(tmp_path / "m.gguf", r"m.gguf: a GGUF file must be whole and well-formed. Got '.*'. Download it again")


def test_damaged_headers_never_hang_or_fail_otherwise(tmp_path: Path) -> None:
    write_gguf("llama", tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    random = np.random.default_rng(0)
    for trial in range(60):
        damaged = bytearray(whole)
        for position in random.integers(0, 2200, size=3):
            damaged[position] = random.integers(256)
        path = tmp_path / f"{trial}.gguf"
        path.write_bytes(damaged)
        with contextlib.suppress(SourceError):  # unless the damage hit what does not matter
            resolve(str(path))
        path.unlink()
