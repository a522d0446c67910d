"""Everything that decides a conversion's output, settled and checked before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.match import Match, match
from moesaic.architectures.sparse import Runtime, SparseTarget
from moesaic.convert.holdings import held, promised
from moesaic.convert.outputs import Outputs
from moesaic.errors import ArchitectureError, PlanError, brief, listing
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
        outputs: makes the plan.
        dense_config: config.json of the source.
    """

    options: Options
    match: Match
    shape: ModelShape
    router: RouterInit
    outputs: Outputs
    dense_config: Mapping[str, Any]

    @cached_property
    def plan(self) -> Plan:
        """Every output tensor and where its bytes come from."""
        return self.outputs.plan()

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
        for key, value in self.match.wrapper.becomes.get(target.model_type, {}).items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, Mapping) else value
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
    found = match(
        config,
        lambda decoder: request(decoder, options),
        options.target,
        options.runtime,
        lambda decoder, target: _shape(decoder, target, options),
    )
    shape = _shape(found.decoder, found.target, options)
    router = options.router or _default_router(options.experts, shape.layer)
    _check_methods(options, router, shape.layer)
    holdings = promised(found, config) if tensors is None else held(found, tensors, config)
    found = replace(found, decoder=holdings.decoder)
    outputs = Outputs(found, shape, options.experts, holdings, options.dtype, options.untie)
    return Conversion(options, found, shape, router, outputs, config)


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
    if options.experts.residual:
        found["residual_experts"] = f"--experts {options.experts.name()} makes small corrections"
    if options.untie:
        found["untie"] = "--untie"
    if not options.spec.normalize_gates:
        found["unnormalized_gates"] = "gates that are not renormalised are asked for"
    return found


def _layers(decoder: Decoder, spec: MoESpec) -> tuple[int, ...]:
    try:
        return spec.layers.indices(decoder.num_layers)
    except ValueError as error:
        raise PlanError(str(error)) from None


def _shape(decoder: Decoder, target: SparseTarget, options: Options) -> ModelShape:
    spec = options.spec
    shared = spec.shared_expert
    if shared is None:
        shared = options.experts.residual or target.shared_required
    layer = LayerSpec(
        num_experts=spec.num_experts,
        top_k=spec.top_k,
        hidden=decoder.hidden,
        width=decoder.width,
        expert_size=spec.expert_size or options.experts.expert_size(decoder.width, spec.num_experts),
        shared_expert=shared,
        normalize_gates=spec.normalize_gates,
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
