"""MoE layers inside the model's own class: which FFNs, and whether the checkpoint holds them as the class does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesaic.architectures.config import MAX_LAYERS
from moesaic.convert.choosing import choose
from moesaic.convert.options import Options, check_methods, default_router, layer_spec
from moesaic.convert.spliced import Spliced
from moesaic.errors import ArchitectureError, CheckpointError, PlanError, brief, did_you_mean, listing
from moesaic.modeling.loading import model_class
from moesaic.modeling.names import read_as
from moesaic.modeling.sections import SECTION
from moesaic.plan import FLOATS, TensorInfo


def splice(config: Mapping[str, Any], options: Options, infos: Mapping[str, TensorInfo] | None = None) -> Spliced:
    """Settle and check a conversion that splices.

    Args:
        config: the dense model's config.json. options: the user's choices.
        infos: the checkpoint's tensors; None plans as if they were those of the class, in the config's dtype.

    Raises:
        ArchitectureError: no FFN is found. PlanError: the options contradict each other or the model. CheckpointError:
        the FFNs' tensors are not in the files.
    """
    from moesaic.modeling.tiny import parts  # noqa: PLC0415
    from moesaic.modeling.tracing import find  # noqa: PLC0415  # imports transformers
    from moesaic.modeling.twin import skeleton  # noqa: PLC0415

    cls, settings = model_class(_plain(config, options))
    if not isinstance(settings, cls.config_class):  # type: ignore[arg-type]
        raise ArchitectureError(
            f"config.json: architectures must name a class of model_type '{config['model_type']}'. Got {cls.__name__}. "
            "Correct whichever is wrong."
        )
    for part in parts(settings):
        layers = getattr(part, "num_hidden_layers", None)  # under whatever name the class has it
        if isinstance(layers, int) and layers > MAX_LAYERS:
            raise ArchitectureError(f"config.json: num_hidden_layers must be at most {MAX_LAYERS}. Got {layers}.")
    sites = find(settings, cls).sites
    model = skeleton(cls, settings)
    if infos is None:
        infos = {name: _info(tensor, config) for name, tensor in model.state_dict().items()}
    picked = choose(sites, options.spec.layers, options.tower)
    chosen = {n: layer_spec(options, site.hidden, site.width, gated=site.gated) for n, site in picked.items()}
    names = read_as(model, infos)
    router = options.router or default_router(options.experts, next(iter(chosen.values())))
    for moe in dict.fromkeys(chosen.values()):
        check_methods(options, router, moe)
    found = Spliced(options, router, config, sites, chosen, names, infos)
    _check_tensors(found)
    _check_names(found, read_as(model, [output.name for output in found.plan.outputs]))
    return found


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a model of this type; one of ours is known too, though it is refused."""
    model_type = config.get("model_type")
    return SECTION in config or (isinstance(model_type, str) and model_type in _model_types())


def _model_types() -> Mapping[str, Any]:
    from transformers.models.auto import configuration_auto  # noqa: PLC0415  # seconds of import

    names: Mapping[str, Any] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    return names


def _plain(config: Mapping[str, Any], options: Options) -> Mapping[str, Any]:
    """Return the config, once it is one of a stock class that stays as it is."""
    if SECTION in config:
        raise ArchitectureError(
            "config.json: the model must be dense. Got one with MoE layers that moesaic put in. Give the dense model "
            "that it was made from, with all towers at once."
        )
    if not is_known(config):
        model_type = config.get("model_type")
        raise ArchitectureError(
            f"config.json: model_type must be one that the installed transformers has. Got {brief(model_type)}."
            f"{did_you_mean(str(model_type), _model_types())}"
        )
    if config.get("auto_map"):
        raise ArchitectureError(
            "config.json: the model's class must be transformers' own. Got auto_map, code that comes with the model. "
            "moesaic never runs such code; take a checkpoint in transformers' own format."
        )
    if options.runtime != "transformers":
        raise PlanError(
            f"--for {options.runtime}: MoE layers inside '{config.get('model_type')}' need a few lines of code that "
            "come with the output, and only transformers 5 and 4.57 are known to load them. Leave --for out."
        )
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise ArchitectureError(f"config.json: architectures must name the model's class. Got {brief(names)}. Add it.")
    return config


def _info(tensor: Any, config: Mapping[str, Any]) -> TensorInfo:
    known = {name: short for short, name in FLOATS.items()}
    written = config.get("dtype") or config.get("torch_dtype")
    dtype = known.get(str(written), "F32") if tensor.dtype.is_floating_point else "I64"
    return TensorInfo(dtype, tuple(tensor.shape))


def _check_tensors(found: Spliced) -> None:
    """Refuse a checkpoint whose FFNs are not there, or stand in another layout than the class has."""
    problems: list[str] = []
    for number in found.chosen:
        site = found.sites[number]
        bias = [f"{path}.bias" for path in site.first if site.first_bias]
        bias += [f"{site.last}.bias"] if site.last_bias else []
        for key in [*(f"{path}.weight" for path in (*site.first, site.last)), *bias]:
            name = found.on_disk.get(key)
            if name is None:
                problems.append(f"tensor {key!r} must be in the files under a name of its own. It is not.")
            elif found.infos[name].dtype not in FLOATS:
                problems.append(f"tensor {name!r} must be of a float dtype. Got {found.infos[name].dtype}. Dequantise.")
    if problems:
        raise CheckpointError(
            f"The checkpoint does not hold the FFNs as {found.class_name} has them:\n{listing(problems)}\n"
            "Save it once with the installed transformers, and convert the result."
        )


def _check_names(found: Spliced, read: Mapping[str, str | None]) -> None:
    """Make sure that transformers will read the new tensors where the MoE layers are."""
    for number in found.chosen:
        site = found.sites[number]
        stored = found.stored(site)[-1]
        for name in read:
            tail = name.removeprefix(f"{stored}.")
            key = read[name]
            if tail != name and key is not None:
                raise ArchitectureError(
                    f"{found.class_name}: {name!r} must be free for the MoE layer of {site.last!r}. The class reads it "
                    f"as {key!r}. Please report this model."
                )
