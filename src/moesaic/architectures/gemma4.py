"""Gemma 4: norms on both sides, two kinds of attention with heads of their own, keys and values shared by late layers.

The dense and the sparse model are one class: with `enable_moe_block` the experts run beside the dense FFN, each branch
normalised before the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from moesaic.architectures.config import Config
from moesaic.architectures.dense import ACTIVATIONS, Decoder, DenseFamily, Entry, llama_like, window
from moesaic.architectures.gemma import TANH_GELU
from moesaic.architectures.wrapper import NEW_NAMES, Wrapper

LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attn."
SHARED = "shared_kv"


def layer_kinds(config: Config) -> list[str]:
    """Return each layer's kind of attention: `layer_types`, else every sixth is full; the last always is."""
    layers = config.size("num_hidden_layers")
    kinds = config.words("layer_types", layers, ("full_attention", "sliding_attention"))
    if kinds is None:
        kinds = tuple("sliding_attention" if layer % 6 else "full_attention" for layer in range(1, layers + 1))
    return [*kinds[:-1], "full_attention"]


def full_heads(config: Config, kinds: list[str]) -> tuple[int, int]:
    """Return (key heads, head dimension) of the full-attention layers, which may differ from the others."""
    one_kv = config.flag("attention_k_eq_v", default=False)
    heads, head_dim = config.size("num_key_value_heads"), config.size("head_dim")
    heads = config.size("num_global_key_value_heads", heads) if one_kv else heads
    written = config.mapping("per_layer_config")
    if written is None:
        return heads, config.size("global_head_dim", 512)
    layers = {key.lstrip("0") or "0": value for key, value in written.items()}  # the class fills up with zeros
    full = [str(layer) for layer, kind in enumerate(kinds) if kind == "full_attention"]
    own = layers.get(full[0], {})
    alike = all(layers.get(layer, {}) == (own if layer in full else {}) for layer in {*full, *layers})
    fits = alike and isinstance(own, Mapping) and own.keys() <= {"num_key_value_heads", "head_dim"}
    if not config.check(fits, "per_layer_config", "the same heads for each full-attention layer alone", written):
        return heads, head_dim
    reader = Config(own, f"{config.origin}: per_layer_config")
    numbers = reader.size("num_key_value_heads", heads), reader.size("head_dim", head_dim)
    config.problems += reader.problems
    return numbers


def read(config: Config) -> Decoder:
    """Read a Gemma4TextConfig."""
    kinds = layer_kinds(config)
    layers = config.size("num_hidden_layers")
    heads, inputs = config.size("num_attention_heads"), config.size("hidden_size_per_layer_input", 256, least=0)
    kv_heads, head_dim = full_heads(config, kinds)
    reused = config.size("num_kv_shared_layers", 0, least=0)
    size = window(config, absent=512)
    features = {}
    if inputs:
        features["layer_inputs"] = f"hidden_size_per_layer_input = {inputs}"
    if config.flag("attention_k_eq_v", default=False):
        features["k_eq_v"] = "attention_k_eq_v = true"
    if reused and config.flag("use_double_wide_mlp", default=False):
        features["mixed_widths"] = "use_double_wide_mlp = true gives some layers a wider FFN"
    if config.flag("attention_bias", default=False):
        features["attention_bias"] = "attention_bias = true"
    return llama_like(
        config,
        "gemma4_text",
        body="gemma4",
        tied=True,
        features=features,
        act=config.word("hidden_activation", TANH_GELU, ACTIVATIONS),
        rope={"rope_type": "default", "rope_theta": 10000.0},
        windows=tuple(size if kind == "sliding_attention" else None for kind in kinds),
        layer_kinds=tuple(f"{kind}+{SHARED}" if i >= layers - reused else kind for i, kind in enumerate(kinds)),
        extra={
            "G": heads * head_dim,
            "H": kv_heads * head_dim,
            "g": head_dim,
            "p": inputs or 1,
            "P": layers * (inputs or 1),
            "U": config.size("vocab_size_per_layer_input", 262144),
            "1": 1,
        },
    )


def slides(decoder: Decoder, layer: int) -> bool:
    """Whether a layer's attention has a window."""
    return decoder.layer_kinds[layer].startswith("sliding")


def spans(decoder: Decoder, layer: int) -> bool:
    """Whether a layer's attention sees everything."""
    return not slides(decoder, layer)


def slides_alone(decoder: Decoder, layer: int) -> bool:
    """Whether a layer has a window, and keys of its own."""
    return slides(decoder, layer) and SHARED not in decoder.layer_kinds[layer]


def spans_alone(decoder: Decoder, layer: int) -> bool:
    """Whether a layer sees everything, with keys of its own."""
    return spans(decoder, layer) and SHARED not in decoder.layer_kinds[layer]


def spans_with_values(decoder: Decoder, layer: int) -> bool:
    """Whether a layer sees everything, with keys and values of its own."""
    return spans_alone(decoder, layer) and "k_eq_v" not in decoder.features


GEMMA4 = DenseFamily(
    "gemma4_text",
    "Gemma4ForCausalLM",
    read,
    (
        Entry("embed", "model.embed_tokens.weight", "VD"),
        Entry("layer_embed", "model.embed_tokens_per_layer.weight", "UP", feature="layer_inputs"),
        Entry("layer_in", "model.per_layer_model_projection.weight", "PD", feature="layer_inputs"),
        Entry("layer_in_norm", "model.per_layer_projection_norm.weight", "p", feature="layer_inputs"),
        Entry("final_norm", "model.norm.weight", "D"),
        Entry("head", "lm_head.weight", "VD", feature="untied"),
        Entry("attn_norm", LAYER + "input_layernorm.weight", "D"),
        Entry("q", ATTENTION + "q_proj.weight", "QD", where=slides),
        Entry("q", ATTENTION + "q_proj.weight", "GD", where=spans),
        Entry("k", ATTENTION + "k_proj.weight", "KD", where=slides_alone),
        Entry("k", ATTENTION + "k_proj.weight", "HD", where=spans_alone),
        Entry("v", ATTENTION + "v_proj.weight", "KD", where=slides_alone),
        Entry("v", ATTENTION + "v_proj.weight", "HD", where=spans_with_values),
        Entry("o", ATTENTION + "o_proj.weight", "DQ", where=slides),
        Entry("o", ATTENTION + "o_proj.weight", "DG", where=spans),
        Entry("q_norm", ATTENTION + "q_norm.weight", "h", where=slides),
        Entry("q_norm", ATTENTION + "q_norm.weight", "g", where=spans),
        Entry("k_norm", ATTENTION + "k_norm.weight", "h", where=slides_alone),
        Entry("k_norm", ATTENTION + "k_norm.weight", "g", where=spans_alone),
        Entry("post_attn_norm", LAYER + "post_attention_layernorm.weight", "D"),
        Entry("ffn_norm", LAYER + "pre_feedforward_layernorm.weight", "D"),
        Entry("gate", LAYER + "mlp.gate_proj.weight", "FD"),
        Entry("up", LAYER + "mlp.up_proj.weight", "FD"),
        Entry("down", LAYER + "mlp.down_proj.weight", "DF"),
        Entry("post_ffn_norm", LAYER + "post_feedforward_layernorm.weight", "D"),
        Entry("layer_gate", LAYER + "per_layer_input_gate.weight", "pD", feature="layer_inputs"),
        Entry("layer_out", LAYER + "per_layer_projection.weight", "Dp", feature="layer_inputs"),
        Entry("layer_out_norm", LAYER + "post_per_layer_input_norm.weight", "D", feature="layer_inputs"),
        Entry("layer_scalar", LAYER + "layer_scalar", "1"),
    ),
    targets=("gemma4_text",),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    # Layers that reuse keys and values hold projections on disk that the class never reads.
    ignored=(r"\.self_attn\.[kv]_(proj|norm)\.weight$",),
)

GEMMA4_COMPOSITE = Wrapper("gemma4", "Gemma4ForConditionalGeneration", prefixes=(NEW_NAMES,))
