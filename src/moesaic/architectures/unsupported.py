"""Model types that no stock MoE class of transformers can express, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping

_PLAIN_FFN = "its FFN is a plain two-matrix block, and every stock MoE class has gated experts without biases"
_LAYER_NORM = "it normalises with LayerNorm, where the MoE classes for such decoders have RMSNorm"
_SANDWICH = "it has norms both before and after attention and FFN, which no stock MoE class has"
_OWN_MROPE = "its text model is a class of its own with multimodal rotary positions, hard-coded in the composite class"
_SWITCH = "SwitchTransformers, the only MoE class of its kind, scales one expert by its probability and drops tokens"
_NLLB = "NllbMoe runs only experts 0 and 1 in transformers 5, so the converted model would be wrong"

_REASONS = {
    _PLAIN_FFN: (
        *("clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_text_model", "siglip_vision_model"),
        *("siglip2", "siglip2_text_model", "siglip2_vision_model", "vit", "deit", "dinov2", "dinov2_with_registers"),
        *("dinov3_vit", "beit", "bert", "roberta", "xlm-roberta", "distilbert", "electra", "deberta-v2"),
        *("whisper", "speecht5", "wav2vec2", "wav2vec2-bert", "hubert", "wavlm", "seamless_m4t", "seamless_m4t_v2"),
        *("moonshine", "speech_to_text", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "codegen", "bloom"),
        *("mpt", "opt", "xglm", "biogpt", "falcon", "phi", "phi-msft", "persimmon", "starcoder2", "nemotron"),
        *("marian", "bart", "mbart", "pegasus"),
    ),
    _LAYER_NORM: ("stablelm", "cohere", "olmo"),
    _SANDWICH: ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "glm4"),
    _OWN_MROPE: (
        *("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni", "qwen2_5_omni_thinker"),
        *("glm4v", "glm4v_text", "glm_ocr"),
    ),
    _SWITCH: ("t5", "mt5", "umt5"),
    _NLLB: ("m2m_100", "nllb"),
}

UNSUPPORTED: Mapping[str, str] = {
    **{model_type: reason for reason, types in _REASONS.items() for model_type in types},
    "smollm3": "some of its layers have no rotary positions (no_rope_layers), which no Llama-like MoE class does",
    "exaone4": "it normalises after attention and FFN, mixes windows, and leaves rotary positions out of full layers",
    "olmo3": "it mixes sliding-window and full attention (layer_types), which FlexOlmo does not have",
    "paligemma": "its language model attends both ways over image and prompt, which no MoE class does",
    "mllama": "it has cross-attention layers between the decoder layers, which no MoE class has",
}
"""Dense model type -> why no stock MoE class fits."""

ALREADY_SPARSE = frozenset(
    {
        *("afmoe", "aria", "aria_text", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32", "ernie4_5_vl_moe"),
        *("glm4_moe_lite", "glm4v_moe", "gpt_oss", "jamba", "jetmoe", "llama4", "llama4_text", "longcat_flash"),
        *("minimax", "minimax_m2", "nllb-moe", "olmoe", "phimoe", "qwen3_next", "qwen3_omni_moe"),
        *("qwen3_vl_moe_text", "qwen3_5_moe_text", "solar_open", "switch_transformers"),
    }
)
"""MoE model types that are no target of ours; those of the targets are known from their records."""

EXPERT_COUNT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
"""Config keys that give a model away as a MoE, whatever its model type."""
