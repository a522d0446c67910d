"""LFM2: short convolutions in most layers, attention in a few."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import Decoder, DenseFamily, Entry, llama_like

LAYER = "model.layers.{layer}."


def layer_kinds(config: Config) -> tuple[str, ...]:
    """Return each layer's mixer: `layer_types`, else attention where `full_attn_idxs` says; all, where absent."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return tuple(kinds)
    layers = range(config.size("num_hidden_layers"))
    attention = config.get("full_attn_idxs", list(layers))
    return tuple("full_attention" if layer in attention else "conv" for layer in layers)


def ffn_width(config: Config) -> int:
    """Return F: the class may shrink the written width to two thirds and round it up."""
    width = config.size("block_ff_dim" if config.get("block_ff_dim") else "intermediate_size")
    if not config.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(config.real("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
    step = config.size("block_multiple_of", 256)
    return -(-width // step) * step


def read(config: Config) -> Decoder:
    """Read an Lfm2Config."""
    kinds = layer_kinds(config)
    features = {"conv_bias": "conv_bias = true"} if config.flag("conv_bias", default=False) else {}
    return llama_like(
        config,
        "lfm2",
        body="lfm2",
        tied=config.flag("tie_embedding", default=True),
        theta=1000000.0,
        norm_eps=1e-5,
        norm_eps_key="norm_eps",
        features=features,
        width=ffn_width(config),
        layer_kinds=kinds,
        extra={"C": config.size("conv_L_cache", 3), "3": 3 * config.size("hidden_size"), "1": 1},
    )


def attends(decoder: Decoder, layer: int) -> bool:
    """Whether a layer's mixer is attention."""
    return decoder.layer_kinds[layer] != "conv"


def convolves(decoder: Decoder, layer: int) -> bool:
    """Whether a layer's mixer is a short convolution."""
    return decoder.layer_kinds[layer] == "conv"


LFM2 = DenseFamily(
    "lfm2",
    "Lfm2ForCausalLM",
    read,
    (
        Entry("embed", "model.embed_tokens.weight", "VD"),
        Entry("final_norm", "model.embedding_norm.weight", "D"),
        Entry("head", "lm_head.weight", "VD", feature="untied"),
        Entry("attn_norm", LAYER + "operator_norm.weight", "D"),
        Entry("q", LAYER + "self_attn.q_proj.weight", "QD", where=attends),
        Entry("k", LAYER + "self_attn.k_proj.weight", "KD", where=attends),
        Entry("v", LAYER + "self_attn.v_proj.weight", "KD", where=attends),
        Entry("o", LAYER + "self_attn.out_proj.weight", "DQ", where=attends),
        Entry("q_norm", LAYER + "self_attn.q_layernorm.weight", "h", where=attends),
        Entry("k_norm", LAYER + "self_attn.k_layernorm.weight", "h", where=attends),
        Entry("conv", LAYER + "conv.conv.weight", "D1C", where=convolves),
        Entry("conv_bias", LAYER + "conv.conv.bias", "D", feature="conv_bias", where=convolves),
        Entry("conv_in", LAYER + "conv.in_proj.weight", "3D", where=convolves),
        Entry("conv_in_bias", LAYER + "conv.in_proj.bias", "3", feature="conv_bias", where=convolves),
        Entry("conv_out", LAYER + "conv.out_proj.weight", "DD", where=convolves),
        Entry("conv_out_bias", LAYER + "conv.out_proj.bias", "D", feature="conv_bias", where=convolves),
        Entry("ffn_norm", LAYER + "ffn_norm.weight", "D"),
        Entry("gate", LAYER + "feed_forward.w1.weight", "FD"),
        Entry("up", LAYER + "feed_forward.w3.weight", "FD"),
        Entry("down", LAYER + "feed_forward.w2.weight", "DF"),
    ),
    targets=("lfm2_moe",),
    defaults={
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "max_position_embeddings": 128000,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
