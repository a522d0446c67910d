"""Qwen3.5: gated delta nets in three of four layers, gated attention in the fourth; a text class and its composite."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    Decoder,
    DenseFamily,
    Entry,
    attention_bias_features,
    llama_like,
)
from moesaic.architectures.rotary import rope_parameters
from moesaic.architectures.wrapper import NEW_NAMES, Wrapper

LAYER = "model.layers.{layer}."


def layer_kinds(config: Config) -> tuple[str, ...]:
    """Return each layer's mixer: `layer_types`, else full attention in every fourth layer."""
    layers = config.size("num_hidden_layers")
    kinds = config.words("layer_types", layers, ("full_attention", "linear_attention"))
    if kinds is not None:
        return kinds
    period = config.size("full_attention_interval", 4)
    return tuple("linear_attention" if layer % period else "full_attention" for layer in range(1, layers + 1))


def read(config: Config) -> Decoder:
    """Read a Qwen3_5TextConfig. Norm weights count from one here as in the sparse class: nothing to fold."""
    heads, head_dim = config.size("num_attention_heads"), config.size("head_dim")
    value_heads, value_dim = config.size("linear_num_value_heads", 32), config.size("linear_value_head_dim", 128)
    keys = config.size("linear_num_key_heads", 16) * config.size("linear_key_head_dim", 128)
    values = value_heads * value_dim
    return llama_like(
        config,
        "qwen3_5_text",
        body="qwen3_5",
        features=attention_bias_features(config),
        rope=rope_parameters(config, partial=0.25),
        layer_kinds=layer_kinds(config),
        head_dim=head_dim,
        extra={
            "P": 2 * heads * head_dim,
            "M": 2 * keys + values,
            "W": values,
            "n": value_heads,
            "d": value_dim,
            "C": config.size("linear_conv_kernel_dim", 4),
            "1": 1,
        },
    )


def attends(decoder: Decoder, layer: int) -> bool:
    """Whether a layer's mixer is attention."""
    return decoder.layer_kinds[layer] == "full_attention"


def recurs(decoder: Decoder, layer: int) -> bool:
    """Whether a layer's mixer is a gated delta net."""
    return decoder.layer_kinds[layer] == "linear_attention"


QWEN3_5 = DenseFamily(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    read,
    (
        Entry("embed", "model.embed_tokens.weight", "VD"),
        Entry("final_norm", "model.norm.weight", "D"),
        Entry("head", "lm_head.weight", "VD", feature="untied"),
        Entry("attn_norm", LAYER + "input_layernorm.weight", "D"),
        Entry("q", LAYER + "self_attn.q_proj.weight", "PD", where=attends),
        Entry("k", LAYER + "self_attn.k_proj.weight", "KD", where=attends),
        Entry("v", LAYER + "self_attn.v_proj.weight", "KD", where=attends),
        Entry("o", LAYER + "self_attn.o_proj.weight", "DQ", where=attends),
        Entry("q_bias", LAYER + "self_attn.q_proj.bias", "P", feature="qkv_bias", where=attends),
        Entry("k_bias", LAYER + "self_attn.k_proj.bias", "K", feature="qkv_bias", where=attends),
        Entry("v_bias", LAYER + "self_attn.v_proj.bias", "K", feature="qkv_bias", where=attends),
        Entry("o_bias", LAYER + "self_attn.o_proj.bias", "D", feature="o_bias", where=attends),
        Entry("q_norm", LAYER + "self_attn.q_norm.weight", "h", where=attends),
        Entry("k_norm", LAYER + "self_attn.k_norm.weight", "h", where=attends),
        Entry("delta_conv", LAYER + "linear_attn.conv1d.weight", "M1C", where=recurs),
        Entry("delta_dt_bias", LAYER + "linear_attn.dt_bias", "n", where=recurs),
        Entry("delta_a_log", LAYER + "linear_attn.A_log", "n", where=recurs),
        Entry("delta_norm", LAYER + "linear_attn.norm.weight", "d", where=recurs),
        Entry("delta_out", LAYER + "linear_attn.out_proj.weight", "DW", where=recurs),
        Entry("delta_qkv", LAYER + "linear_attn.in_proj_qkv.weight", "MD", where=recurs),
        Entry("delta_z", LAYER + "linear_attn.in_proj_z.weight", "WD", where=recurs),
        Entry("delta_b", LAYER + "linear_attn.in_proj_b.weight", "nD", where=recurs),
        Entry("delta_a", LAYER + "linear_attn.in_proj_a.weight", "nD", where=recurs),
        Entry("ffn_norm", LAYER + "post_attention_layernorm.weight", "D"),
        Entry("gate", LAYER + "mlp.gate_proj.weight", "FD"),
        Entry("up", LAYER + "mlp.up_proj.weight", "FD"),
        Entry("down", LAYER + "mlp.down_proj.weight", "DF"),
    ),
    targets=("qwen3_5_moe_text",),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 248320,
        "max_position_embeddings": 32768,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    ignored=(r"^mtp\.",),
)

QWEN3_5_COMPOSITE = Wrapper(
    "qwen3_5",
    "Qwen3_5ForConditionalGeneration",
    prefixes=(NEW_NAMES,),
    becomes={
        "qwen3_5_moe_text": {
            "model_type": "qwen3_5_moe",
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "vision_config": {"model_type": "qwen3_5_moe"},
        }
    },
)
