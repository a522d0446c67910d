"""OLMo 2: norms after attention and FFN instead of before; q and k normalised over all heads at once."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    Entry,
    attention_bias_features,
    edited,
    llama_like,
)

LAYER = "model.layers.{layer}."


def read(config: Config) -> Decoder:
    """Read an Olmo2Config."""
    return llama_like(config, "olmo2", body="olmo2", norm_eps=1e-5, features=attention_bias_features(config))


OLMO2 = DenseFamily(
    "olmo2",
    "Olmo2ForCausalLM",
    read,
    edited(
        LLAMA_TABLE,
        Entry("q_norm", LAYER + "self_attn.q_norm.weight", "Q"),
        Entry("k_norm", LAYER + "self_attn.k_norm.weight", "K"),
        Entry("post_attn_norm", LAYER + "post_attention_layernorm.weight", "D"),
        Entry("post_ffn_norm", LAYER + "post_feedforward_layernorm.weight", "D"),
        without=("attn_norm", "ffn_norm"),
    ),
    targets=("flex_olmo",),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 50304,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
    },
)
