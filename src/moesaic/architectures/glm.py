"""GLM-4-9B (`glm`): biases on q, k and v, half of each head rotary in interleaved pairs, gate and up fused."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, Entry, edited, llama_like
from moesaic.architectures.rotary import rope_parameters


def read(config: Config) -> Decoder:
    """Read a GlmConfig."""
    features = {"interleaved_rotary": "rotary positions turn interleaved pairs in this family"}
    if config.flag("attention_bias", default=True):
        features["qkv_bias"] = "attention_bias = true"
    return llama_like(
        config,
        "glm",
        norm_eps=1.5625e-07,
        features=features,
        rope=rope_parameters(config, partial=0.5),
    )


GLM = DenseFamily(
    "glm",
    "GlmForCausalLM",
    read,
    edited(
        LLAMA_TABLE,
        Entry("gate_up", "model.layers.{layer}.mlp.gate_up_proj.weight", "FD", fused=(("gate", "F"), ("up", "F"))),
        without=("gate", "up"),
    ),
    targets=("glm4_moe",),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "pad_token_id": 151329,
        "bos_token_id": None,
        "eos_token_id": [151329, 151336, 151338],
    },
)
