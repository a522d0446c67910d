"""Tiny dense models of every family and composite, made by transformers itself, with nothing left at zero or one.

Biases, norm weights and buffers are drawn at random, so that a tensor that is lost, folded wrongly or put in the wrong
place shows in the logits. Checkpoints are cut small, so that a shard boundary splits a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moesaic.architectures import Wrapper, records

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [3.0] * 8, "rope_theta": 10000.0}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
DELTA = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA4 = {
    # The MoE branch is normalised twice, so the dense model's epsilon counts for nothing there: keep it negligible.
    "rms_norm_eps": 1e-12,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": 128,
}
PICOS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biased": ("llama", {"attention_bias": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biased": ("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-windows": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "phi4-mini": ("phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "gemma": ("gemma", {"head_dim": 32}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "granite-biased": ("granite", {"attention_bias": True, "attention_multiplier": 0.2}),
    "granite4": (
        "granitemoehybrid",
        {"num_local_experts": 0, "shared_intermediate_size": 96, "layer_types": ["attention"] * 4}
        | {"position_embedding_type": "rope", "embedding_multiplier": 3.0, "attention_multiplier": 0.2}
        | {"mamba_n_heads": 4, "mamba_d_head": 32, "tie_word_embeddings": True},
    ),
    "glm": ("glm", {"head_dim": 16}),
    "olmo2": ("olmo2", {}),
    "cohere2": ("cohere2", {"sliding_window": 8}),
    "ernie4_5": ("ernie4_5", {"head_dim": 16}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 16}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8}),
    "lfm2-biased": ("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "conv_bias": True, "block_multiple_of": 8}),
    "qwen3_5": ("qwen3_5_text", {"head_dim": 16, **DELTA}),
    "qwen3-vl-text": ("qwen3_vl_text", {"head_dim": 16, "rope_parameters": MROPE}),
    "gemma4": ("gemma4_text", {**GEMMA4, "hidden_size_per_layer_input": 0}),
    "gemma4-shared-kv": (
        "gemma4_text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "final_logit_softcapping": 5.0,
        },
    ),
}
"""Name -> (model type, what differs from SIZES)."""

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
LLAVA = {"vision_config": CLIP, "image_token_index": 127, "image_seq_length": 4}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
PIXTRAL |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
IDEFICS = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"image_size": 28, "patch_size": 14},
    "scale_factor": 2,
    "image_token_id": 127,
}
EAR = {"num_mel_bins": 16, "max_source_positions": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
EAR |= {"hidden_size": 32, "intermediate_size": 64}
QWEN_EAR = {"num_mel_bins": 16, "max_source_positions": 20, "encoder_layers": 1, "encoder_attention_heads": 2}
QWEN_EAR |= {"d_model": 32, "encoder_ffn_dim": 64}
QWEN_EYE = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
QWEN_EYE |= {"patch_size": 4, "num_position_embeddings": 16}
VIBE = {"n_filters": 4, "hidden_size": 8, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
COMPOSITES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llava-llama": ("llava", "llama", LLAVA),
    "llava-qwen2": ("llava", "qwen2", LLAVA),
    "llava-phi3": ("llava", "phi3", LLAVA),
    "llava-qwen3-tied": ("llava", "qwen3-biased", LLAVA),
    "llava-next": ("llava_next", "mistral", {**LLAVA, "image_grid_pinpoints": [[28, 28]]}),
    "llava-onevision": (
        "llava_onevision",
        "qwen2",
        {"vision_config": SIGLIP, "image_token_index": 127, "image_grid_pinpoints": [[28, 28]]},
    ),
    "internvl": (
        "internvl",
        "qwen3",
        {
            "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "image_size": [28, 28], "patch_size": [14, 14]},
            "image_token_id": 127,
            "tie_word_embeddings": False,
        },
    ),
    "mistral3": ("mistral3", "mistral", {"vision_config": PIXTRAL, "image_token_index": 127}),
    "aya-vision": ("aya_vision", "cohere2", {"vision_config": SIGLIP, "image_token_index": 127}),
    "ovis2": (
        "ovis2",
        "qwen2",
        {
            "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vocab_size": 16, "hidden_stride": 1},
            "hidden_size": 64,
            "vocab_size": 128,
            "image_token_id": 127,
        },
    ),
    "lfm2-vl": ("lfm2_vl", "lfm2", {"vision_config": {**SIGLIP, "model_type": "siglip2_vision_model"}}),
    "deepseek-vl": ("deepseek_vl", "llama", {"vision_config": SIGLIP, "image_token_id": 127}),
    "janus": (
        "janus",
        "llama",
        {
            "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
            | {"patch_size": 14, "projection_dim": 64, "num_image_tokens": 4},
            "vq_config": {"embed_dim": 4, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32}
            | {"channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 64, "image_token_embed_dim": 64},
            "image_token_id": 127,
        },
    ),
    "idefics3": ("idefics3", "llama", IDEFICS),
    "smolvlm": ("smolvlm", "llama3", {**IDEFICS, "tie_word_embeddings": True}),
    "qwen2-audio": ("qwen2_audio", "qwen2", {"audio_config": QWEN_EAR, "audio_token_index": 127}),
    "voxtral": ("voxtral", "llama", {"audio_config": EAR, "audio_token_id": 127}),
    "granite-speech": (
        "granite_speech",
        "granite",
        {
            "encoder_config": {"input_dim": 16, "num_layers": 1, "hidden_dim": 32, "num_heads": 2, "output_dim": 8}
            | {"context_size": 8, "max_pos_emb": 8},
            "projector_config": {"model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 1}
            | {"num_attention_heads": 2, "intermediate_size": 64, "encoder_hidden_size": 32},
            "audio_token_index": 127,
            "has_lora_adapter": False,
        },
    ),
    "audioflamingo3": ("audioflamingo3", "qwen2", {"audio_config": EAR, "audio_token_id": 127}),
    "musicflamingo": (
        "musicflamingo",
        "qwen2",
        {"audio_config": {**EAR, "model_type": "audioflamingo3_encoder"}, "audio_token_id": 127},
    ),
    "glm-asr": (
        "glmasr",
        "llama",
        {"audio_config": {**EAR, "max_position_embeddings": 20}, "audio_token_id": 127, "tie_word_embeddings": False},
    ),
    "qwen3-asr": (
        "qwen3_asr",
        "qwen3",
        {
            "audio_config": {**QWEN_EAR, "output_dim": 64, "downsample_hidden_size": 8, "n_window": 4},
            "audio_token_id": 127,
            "tie_word_embeddings": False,
        },
    ),
    "vibevoice-asr": (
        "vibevoice_asr",
        "qwen2",
        {"acoustic_tokenizer_encoder_config": VIBE, "semantic_tokenizer_encoder_config": VIBE}
        | {"audio_token_id": 127, "acoustic_tokenizer_chunk_size": 64},
    ),
    "qwen3-vl": (
        "qwen3_vl",
        "qwen3-vl-text",
        {"vision_config": {**QWEN_EYE, "deepstack_visual_indexes": [0]}, "image_token_id": 127}
        | {"video_token_id": 126, "vision_start_token_id": 125, "vision_end_token_id": 124},
    ),
    "qwen3_5-vl": (
        "qwen3_5",
        "qwen3_5",
        {"vision_config": QWEN_EYE, "image_token_id": 127, "video_token_id": 126}
        | {"vision_start_token_id": 125, "vision_end_token_id": 124},
    ),
    "gemma4-composite": ("gemma4", "gemma4", {"vision_config": None, "audio_config": None}),
}
"""Name -> (model type, language model among the picos, the other parts)."""


def text_config(name: str, **changes: Any) -> PreTrainedConfig:
    """Return the config of a pico language model."""
    model_type, own = PICOS[name]
    return AutoConfig.for_model(model_type, **{**SIZES, **own, **changes})


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw matrices at a scale that makes the layers matter, and move every vector off its initial value."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim > 1:
                parameter.copy_(noise / max(parameter.shape[-1], 1) ** 0.5)
            else:
                parameter.add_(0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)
    return model.eval()


def save_text(folder: Path, name: str, **changes: Any) -> PreTrainedModel:
    """Write a pico language model to a folder and return it."""
    torch.manual_seed(0)
    model = randomize(AutoModelForCausalLM.from_config(text_config(name, **changes)))
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


def tokens(length: int = 24, batch: int = 2) -> torch.Tensor:
    """Return token ids [batch, length], none of them special to any model."""
    return torch.randint(3, 120, (batch, length), generator=torch.Generator().manual_seed(1))


def save_composite(folder: Path, name: str) -> PreTrainedModel:
    """Write a pico composite model to a folder and return it."""
    model_type, text, own = COMPOSITES[name]
    config = AutoConfig.for_model(model_type, text_config=text_config(text).to_dict(), **own)
    torch.manual_seed(0)
    model = randomize(getattr(transformers, records(Wrapper)[model_type].class_name)(config))
    model.save_pretrained(folder, max_shard_size="100KB")
    return model
