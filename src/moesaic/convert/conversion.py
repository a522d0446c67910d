"""Everything that decides a conversion's output, settled and checked before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.match import Match, match
from moesaic.architectures.sparse import SparseTarget
from moesaic.convert.holdings import held, promised, said_dtype
from moesaic.convert.options import Options, check_methods, default_router, layer_spec
from moesaic.convert.outputs import Outputs
from moesaic.errors import PlanError
from moesaic.plan import FLOATS, Plan, TensorInfo
from moesaic.routers.base import RouterInit
from moesaic.spec import LayerSpec, ModelShape, MoESpec
from moesaic.stats import Seen


@dataclass(frozen=True)
class Conversion:
    """A checked conversion into a stock class.

    Args:
        options: as given. match: which family becomes which sparse class. shape: all numbers. router: the one used.
        outputs: makes the plan.
        dense_config: config.json of the source. seen: what calibration saw, by MoE layer.
    """

    options: Options
    match: Match
    shape: ModelShape
    router: RouterInit
    outputs: Outputs
    dense_config: Mapping[str, Any]
    seen: Mapping[int, Seen] = field(default_factory=dict)

    @property
    def layers(self) -> Mapping[int, LayerSpec]:
        """MoE layer -> its numbers, the same for all."""
        return dict.fromkeys(self.shape.moe_layers, self.shape.layer)

    @property
    def factors(self) -> tuple[float, float]:
        """Factors on the last linear of the shared expert and of the routed experts."""
        return self.outputs.factors

    @property
    def source_type(self) -> str:
        """Model type of the dense text model."""
        return self.match.family.model_type

    @property
    def target_type(self) -> str:
        """Model type of the sparse class."""
        return self.match.target.model_type

    @property
    def extent(self) -> str:
        """Which layers are MoE, in words."""
        count, moe = self.shape.num_layers, self.shape.moe_layers
        return f"all {count} layers" if len(moe) == count else f"layers {', '.join(map(str, moe))} of {count}"

    @property
    def loading(self) -> tuple[str, str]:
        """The class that loads the result, and the one that loads what reads its inputs."""
        if self.match.wrapper is None:
            return "AutoModelForCausalLM", "AutoTokenizer"
        return self.config["architectures"][0], "AutoProcessor"

    @property
    def code(self) -> tuple[Path, ...]:
        """No code of ours: the class is transformers' own."""
        return ()

    @cached_property
    def plan(self) -> Plan:
        """Every output tensor and where its bytes come from."""
        return self.outputs.plan()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json to write."""
        target, inner, outer = self.match.target, self.match.decoder.config, self.dense_config
        text = {"model_type": target.model_type, **target.configure(self.outputs.decoder, self.shape)}
        text["dtype"] = self._written_dtype(inner, outer)
        text.pop("torch_dtype", None)
        if self.match.wrapper is None:
            return {"architectures": [target.class_name], **text}
        dtype = self._written_dtype(outer, inner)
        whole = {**outer, "dtype": dtype, self.match.wrapper.text_key: text}
        whole.pop("torch_dtype", None)
        for key, value in self.match.wrapper.becomes.get(target.model_type, {}).items():
            whole[key] = {**whole.get(key, {}), **value} if isinstance(value, Mapping) else value
        return whole

    def _written_dtype(self, *configs: Mapping[str, Any]) -> str:
        """Return the dtype asked for, or the one the source's config says: the model loads as the dense one does."""
        return FLOATS[self.options.dtype or said_dtype(*configs) or self.outputs.new_dtype]


def prepare_stock(
    config: Mapping[str, Any], options: Options, tensors: Mapping[str, TensorInfo] | None = None
) -> Conversion:
    """Settle and check a conversion into a stock class.

    Args:
        config: the dense model's config.json. options: the user's choices.
        tensors: the checkpoint's tensors; None plans from the config alone, as if the checkpoint were as it says.

    Raises:
        ArchitectureError: no sparse class expresses the model. PlanError: the options contradict each other or the
        model. CheckpointError: the tensors are not those that the config promises. Each names all problems.
    """
    found = match(
        config,
        lambda decoder: request(decoder, options),
        options.target,
        options.runtime,
        lambda decoder, target: _shape(decoder, target, options),
    )
    shape = _shape(found.decoder, found.target, options)
    router = options.router or default_router(options.experts, shape.layer)
    check_methods(options, router, shape.layer)
    holdings = promised(found, config) if tensors is None else held(found, tensors, config)
    found = replace(found, decoder=holdings.decoder)
    outputs = Outputs(found, shape, options.experts, holdings, options.dtype, options.untie)
    return Conversion(options, found, shape, router, outputs, config)


def request(decoder: Decoder, options: Options) -> dict[str, str]:
    """Return the features that the requested sparsity needs of a target, each with the option it comes from."""
    layers = _layers(decoder, options.spec)
    found: dict[str, str] = {}
    if len(layers) < decoder.num_layers:
        leading = layers == tuple(range(decoder.num_layers - len(layers), decoder.num_layers))
        kind = "leading_dense" if leading else "some_layers"
        found[kind] = f"--layers {options.spec.layers.rule} leaves some layers dense"
    shared = options.experts.needs_shared() if options.spec.shared_expert is None else options.spec.shared_expert
    if shared:
        found["shared_expert"] = "a shared expert is asked for"
    elif options.spec.shared_expert is False:
        found["no_shared_expert"] = "--no-shared-expert"
    if options.experts.needs_shared():
        found["residual_experts"] = f"--experts {options.experts.name()} puts a part into the shared expert"
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
    layer = layer_spec(options, decoder.hidden, decoder.width, shared_required=target.shared_required)
    return ModelShape(layer, _layers(decoder, options.spec), decoder.num_layers)
