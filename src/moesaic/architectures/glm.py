"""GLM-4-9B (`glm`): biases on q, k and v, half of each head rotary in interleaved pairs, gate and up fused."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, Entry, edited, llama_like, rope_parameters


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
        head_dim=config.size("head_dim", 128),
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
)
