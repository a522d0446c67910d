"""Everything that decides a conversion's output, settled and checked before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from moesaic.architectures.dense import Decoder, Part, Stored
from moesaic.architectures.match import Match, match
from moesaic.architectures.sparse import Runtime
from moesaic.convert.outputs import Outputs
from moesaic.errors import ArchitectureError, CheckpointError, PlanError, brief, did_you_mean, listing
from moesaic.experts.base import ExpertInit
from moesaic.experts.spri import Spri
from moesaic.plan import FLOATS, Plan, TensorInfo
from moesaic.routers.base import RouterInit
from moesaic.routers.group_tied import GroupTied
from moesaic.routers.normal import Normal
from moesaic.spec import LayerSpec, ModelShape, MoESpec

EXPERT_UNIT = 8  # neurons; grouped matmul kernels need rows of a multiple of 16 bytes in bf16


@dataclass(frozen=True)
class Options:
    """What a user may choose about a conversion, apart from where it reads and writes.

    Args:
        spec: the sparse model. experts: expert init. router: router init, None: the one that suits the expert init.
        target: model type of the sparse class, None: the preferred one that expresses the model.
        runtime: what shall serve the result; a target that would be wrong there is refused.
        dtype: F32, F16 or BF16 for all float tensors, None: as they are.
        untie: write the output head even where it is tied to the embedding. seed: of all randomness.
    """

    spec: MoESpec = field(default_factory=MoESpec)
    experts: ExpertInit = field(default_factory=Spri)
    router: RouterInit | None = None
    target: str | None = None
    runtime: Runtime = "transformers"
    dtype: str | None = None
    untie: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Conversion:
    """A checked conversion.

    Args:
        options: as given. match: which family becomes which sparse class. shape: all numbers. router: the one used.
        outputs: makes the plan. dropped: source tensors that are left out on purpose, with reasons.
        dense_config: config.json of the source.
    """

    options: Options
    match: Match
    shape: ModelShape
    router: RouterInit
    outputs: Outputs
    dropped: Mapping[str, str]
    dense_config: Mapping[str, Any]

    @cached_property
    def plan(self) -> Plan:
        """Every output tensor and where its bytes come from."""
        return self.outputs.plan(self.dropped)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json to write."""
        target = self.match.target
        dtype = FLOATS[self.outputs.new_dtype]
        text = {"model_type": target.model_type, **target.configure(self.outputs.decoder, self.shape), "dtype": dtype}
        text.pop("torch_dtype", None)
        if self.match.wrapper is None:
            return {"architectures": [target.class_name], **text}
        whole = {**self.dense_config, "dtype": dtype, self.match.wrapper.text_key: text}
        whole.pop("torch_dtype", None)
        return whole


def prepare(config: Mapping[str, Any], options: Options, tensors: Mapping[str, TensorInfo] | None = None) -> Conversion:
    """Settle and check a conversion.

    Args:
        config: the dense model's config.json. options: the user's choices.
        tensors: the checkpoint's tensors; None plans from the config alone, as if the checkpoint were as it says.

    Raises:
        ArchitectureError: no sparse class expresses the model. PlanError: the options contradict each other or the
        model. CheckpointError: the tensors are not those that the config promises. Each names all problems.
    """
    _refuse_quantised(config)
    found = match(config, lambda decoder: request(decoder, options), options.target, options.runtime)
    shape = _shape(found, options)
    router = options.router or _default_router(options.experts, shape.layer)
    _check_methods(options, router, shape.layer)
    stored = list(found.family.tensors(found.decoder))
    prefix: Mapping[str, str] = {}
    dropped: dict[str, str] = {}
    if tensors is None:
        dtype = _config_dtype(found.decoder.config, config)
        tensors = {item.name: TensorInfo(dtype, item.shape) for item in stored}
    else:
        prefix = _prefix(found, stored, tensors)
        stored = [_renamed(item, prefix) for item in stored]
        stored, dropped = _reconcile(found, stored, tensors, prefix)
    outputs = Outputs(found, shape, options.experts, tensors, stored, prefix, options.dtype, options.untie)
    return Conversion(options, found, shape, router, outputs, dropped, config)


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if part.get("quantization_config") is not None:
            raise ArchitectureError(
                "config.json: the weights must be plain floats. Got quantization_config = "
                f"{brief(part['quantization_config'])}. Dequantise the model, or take the one it was made from."
            )


def request(decoder: Decoder, options: Options) -> dict[str, str]:
    """Return the features that the requested sparsity needs of a target, each with the option it comes from."""
    layers = _layers(decoder, options.spec)
    found: dict[str, str] = {}
    if len(layers) < decoder.num_layers:
        leading = layers == tuple(range(decoder.num_layers - len(layers), decoder.num_layers))
        kind = "leading_dense" if leading else "some_layers"
        found[kind] = f"--layers {options.spec.layers.rule} leaves some layers dense"
    shared = options.experts.residual if options.spec.shared_expert is None else options.spec.shared_expert
    if shared:
        found["shared_expert"] = "a shared expert is asked for"
    elif options.spec.shared_expert is False:
        found["no_shared_expert"] = "--no-shared-expert"
    if not options.spec.normalize_gates:
        found["unnormalized_gates"] = "gates that are not renormalised are asked for"
    return found


def _layers(decoder: Decoder, spec: MoESpec) -> tuple[int, ...]:
    try:
        return spec.layers.indices(decoder.num_layers)
    except ValueError as error:
        raise PlanError(str(error)) from None


def _shape(found: Match, options: Options) -> ModelShape:
    spec, decoder = options.spec, found.decoder
    shared = spec.shared_expert
    if shared is None:
        shared = options.experts.residual or found.target.shared_required
    layer = LayerSpec(
        num_experts=spec.num_experts,
        top_k=spec.top_k,
        hidden=decoder.hidden,
        width=decoder.width,
        expert_size=spec.expert_size or options.experts.expert_size(decoder.width, spec.num_experts),
        shared_expert=shared,
        normalize_gates=spec.normalize_gates,
        gated=any(part.role == "gate" for item in found.family.tensors(decoder) for part in item.parts),
    )
    return ModelShape(layer, _layers(decoder, spec), decoder.num_layers)


def _default_router(experts: ExpertInit, layer: LayerSpec) -> RouterInit:
    rows = experts.tied_rows(layer)
    return Normal() if rows == 1 else GroupTied(group=rows)


def _check_methods(options: Options, router: RouterInit, layer: LayerSpec) -> None:
    experts = options.experts
    problems = [*experts.problems(layer), *router.problems(layer)]
    if not problems and experts.tied_rows(layer) not in (1, router.tied_rows()):
        problems.append(
            f"{experts.name()}: the router must share one row among {experts.tied_rows(layer)} neighbouring experts. "
            f"Got {router.name()}, which shares it among {router.tied_rows()}. Use --router group_tied "
            f"--router.group {experts.tied_rows(layer)}, or leave --router out."
        )
    if not problems and experts.identical(layer) and not router.breaks_ties():
        problems.append(
            f"{router.name()}: the router must tell identical experts apart. {experts.name()} makes all experts equal, "
            "so equal logits would never part them in training. Use --router normal."
        )
    if not problems and layer.expert_size % EXPERT_UNIT:
        problems.append(
            f"expert_size: it must be a multiple of {EXPERT_UNIT} neurons, or grouped matmul refuses it at run time. "
            f"Got {layer.expert_size}. Choose another --num-experts or --expert-size."
        )
    if problems:
        raise PlanError("This conversion can't be made:\n" + listing(problems))


def _config_dtype(text: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    known = {torch_name: name for name, torch_name in FLOATS.items()}
    written = [config.get(key) for config in (text, whole) for key in ("dtype", "torch_dtype")]
    return next((known[value] for value in written if isinstance(value, str) and value in known), "BF16")


def _prefix(found: Match, stored: list[Stored], tensors: Mapping[str, TensorInfo]) -> Mapping[str, str]:
    """Return the composite's name map whose embedding stands in the checkpoint."""
    if found.wrapper is None:
        return {}
    embed = next(item for item in stored if item.parts[0].role == "embed")
    for prefix in found.wrapper.prefixes:
        if _renamed(embed, prefix).name in tensors:
            return prefix
    tried = [_renamed(embed, prefix).name for prefix in found.wrapper.prefixes]
    raise CheckpointError(f"The checkpoint must hold the text embedding under one of {', '.join(tried)}. It has none.")


def _renamed(item: Stored, prefix: Mapping[str, str]) -> Stored:
    for text, disk in prefix.items():
        if item.name.startswith(text):
            return Stored(disk + item.name.removeprefix(text), item.shape, item.layer, item.parts)
    return item


def _reconcile(
    found: Match, stored: list[Stored], tensors: Mapping[str, TensorInfo], prefix: Mapping[str, str]
) -> tuple[list[Stored], dict[str, str]]:
    """Hold the checkpoint against what its config promises; return all tensors with their roles, and those dropped."""
    expected = {item.name: item for item in stored}
    problems: list[str] = []
    for item in stored:
        if item.name not in tensors:
            problems.append(
                f"tensor {item.name!r} {list(item.shape)} must be there, as the config says. It is missing."
            )
        elif tensors[item.name].shape != item.shape:
            got = list(tensors[item.name].shape)
            problems.append(f"tensor {item.name!r} must have the config's shape {list(item.shape)}. Got {got}.")
        elif tensors[item.name].dtype not in FLOATS:
            problems.append(
                f"tensor {item.name!r} must be of a float dtype. Got {tensors[item.name].dtype}. Dequantise the model."
            )
    dropped: dict[str, str] = {}
    kept = list(stored)
    text_layers = prefix.get("model.", "model.") + "layers."
    for name in tensors.keys() - expected.keys():
        if name.endswith("rotary_emb.inv_freq"):
            dropped[name] = "a buffer that every class computes for itself"
        elif found.decoder.tied and name.endswith("lm_head.weight"):
            dropped[name] = "the output head is tied to the embedding"
        elif found.wrapper is not None and not name.startswith(text_layers):
            shape = tensors[name].shape
            kept.append(Stored(name, shape, None, (Part("other", 0, shape[0] if shape else 1),)))
        else:
            hint = did_you_mean(name, expected)
            problems.append(f"tensor {name!r} must belong to a {found.family.model_type} model. It is unknown.{hint}")
    if problems:
        raise CheckpointError(f"The checkpoint is not what its config says:\n{listing(sorted(problems))}")
    order = {name: i for i, name in enumerate(tensors)}
    return sorted(kept, key=lambda item: order[item.name]), dropped
