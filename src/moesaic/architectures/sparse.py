"""Sparse targets: the stock MoE classes of transformers, what they can express, and how they are written to disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moesaic.architectures.carried import CARRIED
from moesaic.architectures.dense import Decoder
from moesaic.shapes import Matrix
from moesaic.spec import ModelShape

Runtime = Literal["transformers", "transformers4", "vllm", "llama.cpp"]
"""Where a written model shall run; `transformers4` is 4.57, the last release of the fourth line."""

ROPE = frozenset({"rope_linear", "rope_dynamic", "rope_yarn", "rope_llama3", "rope_longrope"})
"""Rotary scalings that every class computes which takes its rotary settings from transformers."""

SILU_ONLY = "its MoE layer computes SiLU whatever the config says"

WINDOW = "llama.cpp ignores the sliding window, so logits are wrong past it"
LLAMA_CPP = {
    "non_silu": SILU_ONLY,
    "window": WINDOW,
    "layer_windows": WINDOW,
    "rope_llama3": "llama.cpp's converter does not write Llama 3's rotary factors for this class",
    "rope_longrope": "llama.cpp's converter drops the longrope factors",
    "rope_dynamic": "llama.cpp has no dynamic rotary scaling, so logits are wrong past the trained length",
}
"""What llama.cpp gets wrong in classes that know no better, nearly all of it without a word."""


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor of the routed experts (or of the shared one) on disk.

    Args:
        name: template with `{layer}`; with `{expert}` there is one tensor per expert, else one [E, ...] for all.
        matrices: FFN matrices stacked along their rows, in this order.
        transposed: whether each expert is stored as [in, out] instead of torch's [out, in].
    """

    name: str
    matrices: tuple[Matrix, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Constant:
    """A tensor that the target needs and the dense model does not have: one value everywhere.

    Args:
        name: template with `{layer}`. shape: dimension letters, E the experts, `1` a single row. value: its value.
        scope: the MoE layers, every layer, or the model once (then no `{layer}`).
        unless: the decoder's feature that supplies the tensor itself. when: a needed feature, e.g. `shared_expert`.
        float32: kept in float32 whatever the model's dtype.
    """

    name: str
    shape: str
    value: float = 0.0
    scope: Literal["moe", "dense", "layer", "model"] = "moe"
    unless: str | None = None
    when: str | None = None
    float32: bool = False


Limit = Callable[[ModelShape], str | None]
"""A rule on the numbers of the sparse model: the obstacle in words, or None."""


@dataclass(frozen=True)
class SparseTarget:
    """A stock MoE class.

    Args:
        model_type, class_name: as in config.json.
        bodies: dense bodies whose attention, norms and residuals the class computes in the same way.
        supports: features (of the decoder, or of the request: `some_layers`, `leading_dense`, `shared_expert`,
            `unnormalized_gates`) that it can express; anything else is an obstacle.
        requires: features that the class always has, each with the reason said to a model without it.
        limits: what the numbers of the sparse model must satisfy; each returns an obstacle or None.
        experts: the routed experts on disk. router: template of the router weight [E, D].
        shared: the shared expert on disk, empty where the class has none.
        shared_required: the class always has a shared expert.
        shared_gate: factor that the class applies to the shared expert at init (0.5 for a sigmoid gate whose weight is
            zero); its last linear is divided by it, so that the shared expert is exact.
        norms_branches: the class normalises the outputs of shared and routed experts before it adds them, so that a
            small correction beside a whole shared copy would be blown up.
        folds: features that are computed into the weights instead of being expressed (`norm_offset`,
            `embedding_scale`, `interleaved_rotary`); folding is exact up to one rounding to the stored dtype.
        constants: tensors with one value. rename: role -> template, where names differ from the dense ones.
        copies: role -> template of one more place, in MoE layers, that the tensor of this role is written to.
        configure: (decoder, shape) -> the text config to write.
        score: how the class turns logits into gates.
        router_modules: paths, inside a decoder layer in memory, of the module that holds the router weight and whose
            input is the FFN's input; the first that exists is read by the certificate.
        since: the oldest transformers release whose class computes this.
        refuses: runtime -> feature -> why the written model would be wrong or not load there; the key `*` is always.
    """

    model_type: str
    class_name: str
    bodies: frozenset[str]
    supports: frozenset[str]
    experts: tuple[ExpertTensor, ...]
    router: str
    configure: Callable[[Decoder, ModelShape], dict[str, Any]]
    router_modules: tuple[str, ...]
    shared: tuple[ExpertTensor, ...] = ()
    requires: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    shared_required: bool = False
    shared_gate: float = 1.0
    norms_branches: bool = False
    folds: frozenset[str] = frozenset()
    constants: tuple[Constant, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    score: Literal["softmax", "sigmoid"] = "softmax"
    since: str = "4.57"
    refuses: Mapping[Runtime, Mapping[str, str]] = field(default_factory=dict)

    def obstacles(self, decoder: Decoder, request: Mapping[str, str], shape: ModelShape | None = None) -> list[str]:
        """Return every reason why this class can't express the decoder with the requested sparsity; [] is a yes.

        Args:
            request: features of the request, each with the option it comes from.
            shape: the sparse model's numbers; None leaves the limits on them unchecked.
        """
        if decoder.body not in self.bodies:
            return [f"attention, norms and residuals are those of '{decoder.family}'"]
        known = self.supports | self.folds | {"tied", "untied", "no_shared_expert", "residual_experts", "untie"}
        wanted = {**decoder.features, **request}
        found = [reason for feature, reason in wanted.items() if feature not in known]
        found += [reason for feature, reason in self.requires.items() if feature not in wanted]
        if self.norms_branches and "residual_experts" in request:
            found.append(f"the class normalises routed and shared output each ({request['residual_experts']})")
        if self.shared_required and "no_shared_expert" in request:
            found.append(f"the class always has a shared expert ({request['no_shared_expert']})")
        if shape is not None:
            found += [obstacle for limit in self.limits if (obstacle := limit(shape))]
        return list(dict.fromkeys(found))

    def cannot_serve(self, runtime: Runtime, features: Mapping[str, str]) -> list[str]:
        """Return every reason why `runtime` can't serve what is written, given all features; [] is a yes."""
        rules = self.refuses.get(runtime, {})
        gone = {"tied"} if "untie" in features else set()
        too_new = runtime == "transformers4" and self.since != "4.57"
        found = [f"the class is new in transformers {self.since}"] if too_new else []
        return found + [why for feature, why in rules.items() if feature == "*" or feature in features.keys() - gone]


def common_config(decoder: Decoder) -> dict[str, Any]:
    """Return the part of a text config that all Llama-like sparse classes share.

    Rotary settings are written three times (`rope_theta`, `rope_scaling`, `rope_parameters`), since readers differ in
    which they know. Token ids and the like are carried over as they stand.
    """
    rope = dict(decoder.rope)
    theta = rope.pop("rope_theta")
    plain = rope["rope_type"] in ("default", "longrope")
    beside = ("partial_rotary_factor", "original_max_position_embeddings") if plain else ()
    return {
        **{key: decoder.config[key] for key in CARRIED if key in decoder.config},
        "vocab_size": decoder.vocab,
        "hidden_size": decoder.hidden,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": decoder.act,
        "max_position_embeddings": decoder.max_positions,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": theta,
        "rope_scaling": None if rope == {"rope_type": "default"} else rope,
        "rope_parameters": {**rope, "rope_theta": theta},
        **{key: rope[key] for key in beside if key in rope},
        # A scale folded into the embedding parts it from the head; classes with a multiplier of their own override.
        "tie_word_embeddings": decoder.tied and decoder.embedding_scale == 1.0,
    }


def kin_config(decoder: Decoder, *without: str) -> dict[str, Any]:
    """Return the dense config's keys, but for some, for a class that differs from the dense one in its FFN alone."""
    dropped = ("architectures", "model_type", "transformers_version", "auto_map", "_name_or_path", "intermediate_size")
    kept = decoder.config.keys() - {*dropped, *without}
    return {**{key: decoder.config[key] for key in decoder.config if key in kept}, **common_config(decoder)}


def expert_counts(shape: ModelShape) -> dict[str, int]:
    """Return the number of experts under both of its names, and the top-k."""
    layer = shape.layer
    return {
        "num_experts": layer.num_experts,
        "num_local_experts": layer.num_experts,
        "num_experts_per_tok": layer.top_k,
    }


def expert_tensors(prefix: str) -> tuple[ExpertTensor, ...]:
    """Return the three matrices of a block under the names that most sparse classes share."""
    return (
        ExpertTensor(prefix + "gate_proj.weight", ("gate",)),
        ExpertTensor(prefix + "up_proj.weight", ("up",)),
        ExpertTensor(prefix + "down_proj.weight", ("down",)),
    )


def dense_layers(shape: ModelShape) -> list[int]:
    """Return the layers that keep their dense FFN."""
    return [layer for layer in range(shape.num_layers) if layer not in shape.moe_layers]


def attention_bias(decoder: Decoder) -> dict[str, bool]:
    """Return the key of classes in which one switch puts biases on the attention's linears."""
    return {"attention_bias": bool({"qkv_bias", "o_bias"} & decoder.features.keys())}


def layer_types(decoder: Decoder) -> dict[str, Any]:
    """Return the keys that say which layers have a sliding window, and how long it is."""
    windows = decoder.windows or (None,) * decoder.num_layers
    return {
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }


def shared_is_whole_experts(shape: ModelShape) -> str | None:
    """Limit of classes whose shared expert is a whole number of routed experts wide."""
    layer = shape.layer
    if not layer.shared_expert or layer.shared_width % layer.expert_size == 0:
        return None
    return (
        "the class's shared expert is a whole number of routed experts wide, "
        f"and {layer.shared_width} neurons are no multiple of {layer.expert_size}"
    )


def shared_is_one_expert(shape: ModelShape) -> str | None:
    """Limit of classes whose shared expert is exactly as wide as a routed one."""
    layer = shape.layer
    if not layer.shared_expert or layer.shared_width == layer.expert_size:
        return None
    return (
        f"the class's shared expert is as wide as a routed one, and they are {layer.shared_width} and "
        f"{layer.expert_size} neurons"
    )
