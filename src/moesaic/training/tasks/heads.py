"""Classifiers out of classifiers and encoders: transformers' own class, its head drawn anew where it must be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import TrainingError, did_you_mean
from moesaic.lazy import torch
from moesaic.modeling.sections import PREFIX, SECTION, auto_map
from moesaic.quiet import quiet
from moesaic.training.shards import cut_like, whole
from moesaic.training.tasks.counting import count_labels
from moesaic.training.tasks.models import open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENDING = "ForImageClassification"
HEADS = ("classifier", "dist_head", "fc", "head", "score")
"""What transformers' classifiers call their heads."""
SPARE = ("pooler", "classifier", "head", "mask_token", "decoder")
"""Parts of a stored model that its family's classifier has no use for."""


def open_classifier(folder: Path, names: Sequence[str], seed: int) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a classifier of these classes in float32, stock or spliced; return it and the names of what was drawn anew.

    Raises:
        TrainingError: where the model's family has no classifier, or more than a head would be drawn anew.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder}: a model folder must hold a config.json. Got: {error}.") from None
    stock = config["architectures"][0].removeprefix(PREFIX if SECTION in config else "")
    if stock.endswith(ENDING) and _classes(config) == list(names):
        return open_model(folder), ()
    if not stock.endswith(ENDING):
        return _loaded(folder, config, _classifier(stock, config), names, seed)
    model, drawn = _loaded(folder, config, stock, names, seed)
    return model, (*drawn, *_arrange(model, _classes(config), names, seed))


def _classes(config: Mapping[str, Any]) -> list[str]:
    return [name for _, name in sorted(config.get("id2label", {}).items(), key=lambda pair: int(pair[0]))]


def _classifier(stock: str, config: Mapping[str, Any]) -> str:
    """Return the class of transformers that puts a head on this encoder."""
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415  # imports transformers
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN,
    )

    family = str(config["model_type"]).removeprefix(f"{SECTION}_")
    found = KNOWN.get(family)
    if found is None:
        raise TrainingError(
            f"image classification: the model's family must have a ...{ENDING} class in transformers. Got {stock} of "
            f"the family {family}.{did_you_mean(family, KNOWN)} Take an encoder such as ViT or DINOv2."
        )
    return found if isinstance(found, str) else found[0]


def _arrange(model: PreTrainedModel, classes: Sequence[str], names: Sequence[str], seed: int) -> tuple[str, ...]:
    """Give the rows of a loaded head the order of the names; draw those of other classes anew, though they fit."""
    if len(classes) not in (0, len(names)):
        return ()  # no shape fitted
    known = sorted(classes) == sorted(names)
    outputs = _outputs(model, len(names))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for layer in outputs.values():
            for tensor in layer.parameters():
                if known:
                    order = torch.tensor([classes.index(name) for name in names])
                    tensor.copy_(cut_like(whole(tensor).cpu()[order], tensor))
                else:
                    vars(tensor)["_is_hf_initialized"] = False  # else transformers leaves it
            if not known:
                model._init_weights(layer)  # noqa: SLF001  # the only way to draw as the class does
    if known:
        return ()
    return tuple(name for path, layer in outputs.items() for name, _ in layer.named_parameters(prefix=path))


def _outputs(model: PreTrainedModel, count: int) -> dict[str, torch.nn.Module]:
    """Return the last linear of each head, where it has an output a class, by its path."""
    linears = [
        [(path, one) for path, one in child.named_modules(prefix=name) if isinstance(one, torch.nn.Linear)]
        for name, child in model.named_children()
        if name in HEADS
    ]
    return dict(found[-1] for found in linears if found and found[-1][1].out_features == count)


def _loaded(
    folder: Path, config: Mapping[str, Any], class_name: str, names: Sequence[str], seed: int
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a classifier; a head that is missing or of another size is drawn. Return the names of what is."""
    from moesaic.modeling.loading import further_arguments, model_class  # noqa: PLC0415  # imports transformers

    spliced = SECTION in config
    changed = {
        **config,
        "architectures": [PREFIX * spliced + class_name],
        "id2label": {str(place): name for place, name in enumerate(names)},
        "label2id": {name: place for place, name in enumerate(names)},
        **({"auto_map": auto_map(class_name)} if spliced else {}),
    }
    changed.pop("num_labels", None)
    cls, settings = model_class(changed)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            made: Any = cls.from_pretrained(
                folder,
                config=settings,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **further_arguments(),
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"{folder}: its weights must load into {class_name}. They do not: {error}. Take another model."
            ) from error
    model: PreTrainedModel = made[0].eval()
    drawn = _drawn(made[1])
    wrong = _out_of_place(model, drawn, made[1]["unexpected_keys"])
    if wrong:
        raise TrainingError(
            f"{folder}: all but a head must be loaded from the model. Got no match for {', '.join(wrong[:3])}. "
            f"Take a model whose weights fit {class_name}."
        )
    count_labels(model)
    return model, drawn


def _drawn(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what no stored tensor fitted."""
    misfits = (key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])
    return tuple(sorted({*info["missing_keys"], *misfits}))


def _out_of_place(model: PreTrainedModel, drawn: Sequence[str], spare: Iterable[str]) -> list[str]:
    """Return the tensors drawn anew that are of no head, and those without a place that are of no other tower."""
    inside = f"{model.base_model_prefix}."
    names = [name.removeprefix(inside) for name in model.state_dict()]
    towers = {name.partition(".")[0] for name in names}
    wrong = [key for key in drawn if key.partition(".")[0] not in HEADS]
    for key in spare:
        parts = key.removeprefix(inside).split(".")
        if parts[0] in towers and not set(SPARE) & set(parts):
            wrong.append(key)
    return sorted(wrong)
