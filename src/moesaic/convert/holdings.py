"""What a dense checkpoint holds, tensor by tensor: as its config promises, or as its files say, held against it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moesaic.architectures.dense import Decoder, Part, Stored
from moesaic.architectures.match import Match
from moesaic.errors import CheckpointError, did_you_mean, listing
from moesaic.plan import FLOATS, TensorInfo

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Holdings:
    """The tensors of a dense checkpoint.

    Args:
        decoder: the text model, with an output head of its own or without, as found.
        stored: role, shape and layer of every tensor, by its name on disk, in the order of the files.
        infos: dtype and shape of every tensor, those that are dropped included.
        prefix: text-model name prefix -> prefix on disk; empty but for composites.
        dropped: tensors that are left out on purpose, each with the reason.
        repeats: dropped output head -> the embedding, which it must equal.
    """

    decoder: Decoder
    stored: tuple[Stored, ...]
    infos: Mapping[str, TensorInfo]
    prefix: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    repeats: Mapping[str, str] = field(default_factory=dict)

    def on_disk(self, name: str) -> str:
        """Return the name on disk of a text model's tensor."""
        return _on_disk(name, self.prefix)


def promised(found: Match, config: Mapping[str, Any]) -> Holdings:
    """Return what the config alone promises; of a composite, the text model under its own names."""
    dtype = said_dtype(found.decoder.config, config) or "BF16"
    stored = tuple(found.family.tensors(found.decoder))
    return Holdings(found.decoder, stored, {item.name: TensorInfo(dtype, item.shape) for item in stored})


def held(found: Match, infos: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Holdings:
    """Hold the files' tensors against what the config promises.

    Raises:
        CheckpointError: naming every tensor that is missing, unknown, misshapen or not of a float dtype.
    """
    prefix = _prefix(found, infos)
    decoder = found.decoder
    if found.wrapper is not None:
        # The outer config's default often says tied where no head is stored, or untied where one is. Where both parts
        # say untied in so many words, no class ties, and a missing head would be drawn at random.
        untied = all(part.get("tie_word_embeddings") is False for part in (config, decoder.config))
        decoder = decoder.with_head(untied or _on_disk(HEAD, prefix) in infos)
    promise = [replace(item, name=_on_disk(item.name, prefix)) for item in found.family.tensors(decoder)]
    problems = [*_broken(promise, infos)]
    stored = {item.name: item for item in promise}
    dropped: dict[str, str] = {}
    repeats: dict[str, str] = {}
    text_layers = _on_disk("model.layers.", prefix)
    for name in infos.keys() - stored.keys():
        if any(re.search(pattern, name) for pattern in found.family.ignored):
            dropped[name] = "the class never reads it"
        elif decoder.tied and name == _on_disk(HEAD, prefix):
            dropped[name] = "the output head is tied to the embedding"
            repeats[name] = next(item.name for item in promise if item.parts[0].role == "embed")
        elif found.wrapper is not None and not name.startswith(text_layers):
            shape = infos[name].shape
            stored[name] = Stored(name, shape, None, (Part("other", 0, shape[0] if shape else 1),))
        else:
            hint = did_you_mean(name, [item.name for item in promise])
            problems.append(f"tensor {name!r} must belong to a {found.family.model_type} model. It is unknown.{hint}")
    if problems:
        raise CheckpointError(f"The checkpoint is not what its config says:\n{listing(sorted(problems))}")
    in_order = tuple(stored[name] for name in infos if name in stored)
    return Holdings(decoder, in_order, infos, prefix, dropped, repeats)


def _broken(promise: list[Stored], infos: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield every way in which the files break the config's promise."""
    for item in promise:
        if item.name not in infos:
            yield f"tensor {item.name!r} {list(item.shape)} must be there, as the config says. It is missing."
        elif infos[item.name].shape != item.shape:
            got = list(infos[item.name].shape)
            yield f"tensor {item.name!r} must have the config's shape {list(item.shape)}. Got {got}."
        elif infos[item.name].dtype not in FLOATS:
            got_dtype = infos[item.name].dtype
            yield f"tensor {item.name!r} must be of a float dtype. Got {got_dtype}. Dequantise the model."


def _prefix(found: Match, infos: Mapping[str, TensorInfo]) -> Mapping[str, str]:
    """Return the composite's name map under which the embedding stands in the files."""
    if found.wrapper is None:
        return {}
    embed = next(item.name for item in found.family.tensors(found.decoder) if item.parts[0].role == "embed")
    for prefix in found.wrapper.prefixes:
        if _on_disk(embed, prefix) in infos:
            return prefix
    tried = [_on_disk(embed, prefix) for prefix in found.wrapper.prefixes]
    raise CheckpointError(f"The checkpoint must hold the text embedding under one of {', '.join(tried)}. It has none.")


def _on_disk(name: str, prefix: Mapping[str, str]) -> str:
    for text, disk in prefix.items():
        if name.startswith(text):
            return disk + name.removeprefix(text)
    return name


def said_dtype(*configs: Mapping[str, Any]) -> str | None:
    """Return the dtype that the first of these configs to name one names, under the key of today or that of old."""
    known = {torch_name: name for name, torch_name in FLOATS.items()}
    written = [config.get(key) for config in configs for key in ("dtype", "torch_dtype")]
    return next((known[value] for value in written if isinstance(value, str) and value in known), None)
