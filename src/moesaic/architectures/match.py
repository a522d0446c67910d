"""Finding the sparse class for a dense config: which family it is, and which target expresses it exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records
from moesaic.architectures.config import Config
from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import Runtime
from moesaic.architectures.unsupported import ALREADY_SPARSE, EXPERT_COUNT_KEYS, UNSUPPORTED
from moesaic.errors import ArchitectureError, brief, did_you_mean, listing
from moesaic.spec import ModelShape

SPLICING = "Pass --target splice to put MoE layers into the model's own class instead."


@dataclass(frozen=True)
class Match:
    """A dense model and the sparse class that expresses it.

    Args:
        family: its dense family. decoder: its text config, read. target: the sparse class.
        wrapper: the composite class around the text model, if any.
        origin: what to call the text config in messages, e.g. `config.json: text_config`.
    """

    family: DenseFamily
    decoder: Decoder
    target: SparseTarget
    wrapper: Wrapper | None
    origin: str


def match(
    config: Mapping[str, Any],
    request: Callable[[Decoder], Mapping[str, str]],
    target: str | None = None,
    runtime: Runtime = "transformers",
    shape: Callable[[Decoder, SparseTarget], ModelShape] | None = None,
) -> Match:
    """Return the sparse class that expresses this model with the requested sparsity.

    Args:
        config: the parsed config.json.
        request: returns, for the decoder read, the features of the request, each with the option it comes from, e.g.
            `{"some_layers": "layers = every:4"}`.
        target: model type of the sparse class to use; None takes the family's preferred one among those that can.
        runtime: what shall serve the model; targets that would be wrong or not load there are no candidates.
        shape: returns the numbers of the sparse model; None leaves the targets' limits on them unchecked.

    Raises:
        ArchitectureError: if the model type is unknown or has no stock class, if the config is unusable, or if no
            target (or not the named one) expresses the model; with every obstacle of every candidate.
    """
    wrapper, text, origin = _text_config(config)
    family = _family(text, origin)
    reader = Config(text, origin, family.absent(composite=wrapper is not None))
    decoder = family.read(reader)
    reader.finish()
    wanted = request(decoder)
    alone = family.standalone if wrapper else ""
    unserved = wrapper.not_served.get(runtime) if wrapper and wrapper.not_served else None
    found = {
        candidate.model_type: candidate.obstacles(decoder, wanted, shape and shape(decoder, candidate))
        + candidate.cannot_serve(runtime, {**decoder.features, **wanted})
        + [reason for reason in (alone, unserved) if reason]
        for candidate in _candidates(family, target)
    }
    for name, obstacles in found.items():
        if not obstacles:
            return Match(family, decoder, records(SparseTarget)[name], wrapper, origin)
    raise ArchitectureError(_refusal(family, origin, found))


def has_stock_class(config: Mapping[str, Any]) -> bool:
    """Whether stock MoE classes were made for the model's kind: its family, the composite it is, or a MoE already."""
    model_type = config.get("model_type")
    counts = any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERT_COUNT_KEYS)
    known = {*records(DenseFamily), *records(SparseTarget), *records(Wrapper), *ALREADY_SPARSE}
    return counts or (isinstance(model_type, str) and model_type in known)


def stock_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the model types of the sparse classes that were made for the model's kind, the preferred one first."""
    wrapper = records(Wrapper).get(str(config.get("model_type")))
    text = config.get(wrapper.text_key) if wrapper else config
    family = records(DenseFamily).get(str(text.get("model_type"))) if isinstance(text, Mapping) else None
    return family.targets if family else ()


def _text_config(config: Mapping[str, Any]) -> tuple[Wrapper | None, Mapping[str, Any], str]:
    wrapper = records(Wrapper).get(str(config.get("model_type")))
    if wrapper is None:
        return None, config, "config.json"
    text = config.get(wrapper.text_key)
    if not isinstance(text, Mapping):
        raise ArchitectureError(
            f"config.json: {wrapper.text_key} must be the config of the language model. Got {brief(text)}."
        )
    for key in {
        key for changes in wrapper.becomes.values() for key, new in changes.items() if isinstance(new, Mapping)
    }:
        if not isinstance(config.get(key, {}), Mapping):
            raise ArchitectureError(f"config.json: {key} must be a JSON object. Got {brief(config[key])}.")
    return wrapper, text, f"config.json: {wrapper.text_key}"


def _family(text: Mapping[str, Any], origin: str) -> DenseFamily:
    model_type = text.get("model_type")
    if not isinstance(model_type, str):
        raise ArchitectureError(f"{origin}: model_type must name the model's class. Got {brief(model_type)}.")
    families: Mapping[str, DenseFamily] = records(DenseFamily)
    sparse = ALREADY_SPARSE | records(SparseTarget).keys()
    counts = {key: text[key] for key in EXPERT_COUNT_KEYS if isinstance(text.get(key), int) and text[key] > 1}
    if counts or (model_type in sparse and model_type not in families):
        why = "".join(f", {key} = {value}" for key, value in counts.items())
        raise ArchitectureError(
            f"{origin}: the model must be dense. Got '{model_type}'{why}: it is already a MoE."
            " Give the dense model that it was made from."
        )
    if model_type in families:
        return families[model_type]
    if model_type in UNSUPPORTED:
        raise ArchitectureError(
            f"{origin}: '{model_type}' has no stock MoE class that computes the same: {UNSUPPORTED[model_type]}."
            f" {SPLICING}"
        )
    raise ArchitectureError(
        f"{origin}: model_type '{model_type}' is not a supported dense family."
        f"{did_you_mean(model_type, [*families, *records(Wrapper)])}\nSupported: {', '.join(families)};"
        f" and around these: {', '.join(records(Wrapper)) or 'none'}. {SPLICING}"
    )


def _candidates(family: DenseFamily, target: str | None) -> list[SparseTarget]:
    targets = records(SparseTarget)
    if target is None:
        return [targets[name] for name in family.targets if name in targets]
    if target not in targets:
        raise ArchitectureError(
            f"target: it must be one of {', '.join(targets)}. Got '{target}'.{did_you_mean(target, targets)}"
        )
    return [targets[target]]


def _refusal(family: DenseFamily, origin: str, found: Mapping[str, list[str]]) -> str:
    nearest = min(found, key=lambda name: len(found[name]))
    lines = [f"{name}: {obstacle}" for name, obstacles in found.items() for obstacle in obstacles]
    return (
        f"{origin}: no sparse class expresses this '{family.model_type}' model exactly:\n{listing(lines)}\n"
        f"Nearest: {nearest}, with {len(found[nearest])} obstacle{'s' if len(found[nearest]) > 1 else ''}. {SPLICING}"
    )
