"""LFM2: short convolutions in most layers, attention in a few."""

from __future__ import annotations

from moesaic.architectures.config import MAX_SIZE, Config
from moesaic.architectures.dense import Decoder, DenseFamily, Entry, llama_like

LAYER = "model.layers.{layer}."


def layer_kinds(config: Config) -> tuple[str, ...]:
    """Return each layer's mixer: `layer_types`, else attention where `full_attn_idxs` says; all, where absent."""
    layers = config.size("num_hidden_layers")
    kinds = config.words("layer_types", layers, ("full_attention", "conv"))
    if kinds is not None:
        return kinds
    attention = config.get("full_attn_idxs", list(range(layers)))
    fits = isinstance(attention, list) and all(isinstance(layer, int) for layer in attention)
    if not config.check(fits, "full_attn_idxs", "a list of layers", attention):
        return ("conv",) * layers
    return tuple("full_attention" if layer in attention else "conv" for layer in range(layers))


def ffn_width(config: Config) -> int:
    """Return F: the class may shrink the written width to two thirds and round it up."""
    width = config.size("intermediate_size" if config.get("block_ff_dim") is None else "block_ff_dim")
    if not config.flag("block_auto_adjust_ff_dim", default=True):
        return width
    adjusted = config.real("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3)
    step = config.size("block_multiple_of", 256)
    rule = f"1 to {MAX_SIZE} once two thirds of it are multiplied by block_ffn_dim_multiplier"
    return (
        -(-int(adjusted) // step) * step
        if config.check(1 <= adjusted <= MAX_SIZE, "intermediate_size", rule, adjusted)
        else 1
    )


def read(config: Config) -> Decoder:
    """Read an Lfm2Config."""
    kinds = layer_kinds(config)
    features = {"conv_bias": "conv_bias = true"} if config.flag("conv_bias", default=False) else {}
    return llama_like(
        config,
        "lfm2",
        body="lfm2",
        tied=True,
        tied_key="tie_word_embeddings" if config.get("tie_embedding") is None else "tie_embedding",
        theta=1000000.0,
        norm_eps=1e-5,
        norm_eps_key="norm_eps",
        features=features,
        width=ffn_width(config),
        act="silu",
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
