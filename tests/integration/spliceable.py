"""Tiny models whose FFNs are spliced: one of each kind that has no stock MoE class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

BODY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**BODY, "image_size": 32, "patch_size": 8}
TEXT = {**BODY, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BOTH_SIDES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
CLIP_B = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}

MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "clip-b32": (
        "CLIPModel",
        {"text_config": {**TEXT}, "vision_config": {**CLIP_B, "image_size": 64, "patch_size": 32}},
    ),
    "clip-b16": (
        "CLIPModel",
        {"text_config": {**TEXT}, "vision_config": {**CLIP_B, "image_size": 64, "patch_size": 16}},
    ),
    "clip-vision": ("CLIPVisionModelWithProjection", IMAGE),
    "siglip": ("SiglipModel", {"text_config": {**TEXT}, "vision_config": IMAGE}),
    "siglip-vision": ("SiglipVisionModel", IMAGE),
    "vit": ("ViTForImageClassification", IMAGE),
    "dinov2": ("Dinov2Model", {**IMAGE, "mlp_ratio": 2}),
    "bert": ("BertForMaskedLM", TEXT),
    "roberta": ("RobertaModel", {**TEXT, "max_position_embeddings": 64}),
    "whisper": ("WhisperForConditionalGeneration", {**BOTH_SIDES, "num_mel_bins": 8, "max_source_positions": 20}),
    "m2m100": ("M2M100ForConditionalGeneration", BOTH_SIDES),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5-gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4}),
    "modernbert": ("ModernBertModel", {**TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "gemma2": ("Gemma2ForCausalLM", {**TEXT, "head_dim": 8, "num_key_value_heads": 2}),
}
"""Name -> (class, what its config is made of)."""


def make(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Return a model with nothing left at zero or one, biases and norms included."""
    class_name, settings = MODELS[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings)).to(dtype).eval()
    return randomised(model)


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.copy_(drawn * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 1 + 0.3 * drawn)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model in shards that cut through its layers."""
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return inputs for any of these models, the same for a model and its spliced copy."""
    generator = torch.Generator().manual_seed(2)
    config, dtype = model.config, model.dtype

    def ids(length: int) -> torch.Tensor:
        return torch.randint(3, 60, (2, length), generator=generator)

    found: dict[str, torch.Tensor] = {}
    vision = getattr(config, "vision_config", config)
    if model.main_input_name == "pixel_values" or hasattr(config, "vision_config"):
        size = vision.image_size
        found["pixel_values"] = torch.randn(2, 3, size, size, generator=generator).to(dtype)
    if model.main_input_name == "input_features":
        found["input_features"] = torch.randn(2, config.num_mel_bins, 40, generator=generator).to(dtype)
    if model.main_input_name == "input_ids":
        found["input_ids"] = ids(7)
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = ids(5)
    return found


def output(model: PreTrainedModel, given: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Return all that a model says, in one vector."""
    with torch.no_grad():
        said = model(**(given or inputs(model)))
    names = ("logits", "last_hidden_state", "image_embeds", "text_embeds", "pooler_output")
    return torch.cat([said[name].flatten() for name in names if said.get(name) is not None])
