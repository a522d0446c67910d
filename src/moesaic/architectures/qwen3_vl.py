"""Qwen3-VL: Qwen3 with multimodal rotary positions, in a composite whose sparse form is a class of its own."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, attention_bias_features, llama_like
from moesaic.architectures.wrapper import NEW_NAMES, Wrapper


def read(config: Config) -> Decoder:
    """Read a Qwen3VLTextConfig."""
    features = {
        "qk_norm": "q and k are normalised in this family",
        "mrope": "multimodal rotary positions (mrope_section)",
        **attention_bias_features(config),
    }
    return llama_like(config, "qwen3_vl_text", theta=500000.0, features=features)


QWEN3_VL = DenseFamily(
    "qwen3_vl_text",
    "Qwen3VLTextModel",
    read,
    LLAMA_TABLE,
    targets=("qwen3_vl_moe_text",),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "pad_token_id": None,
    },
)

QWEN3_VL_COMPOSITE = Wrapper(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    prefixes=(NEW_NAMES,),
    becomes={
        "qwen3_vl_moe_text": {
            "model_type": "qwen3_vl_moe",
            "architectures": ["Qwen3VLMoeForConditionalGeneration"],
            "vision_config": {"model_type": "qwen3_vl_moe"},
        }
    },
)
