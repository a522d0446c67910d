"""A dual encoder out of two dense towers that were never trained together, in a class that transformers has.

`VisionTextDualEncoderModel` takes each tower's `pooler_output`: the normalised class token for DINOv2, but for BERT
`tanh(W h_0 + b)`, which sentence encoders such as MiniLM leave untrained, as they take the mean over tokens. That mean
is written here as one more BERT layer, so that no code of ours is needed to load, train or upcycle the result: equal
attention to all tokens, values as they are, the sum so much larger than the residual that the norm sees the mean alone,
an FFN that adds a constant, which the norm takes out, and a pooler in the straight part of its tanh.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesaic.errors import ArchitectureError, CheckpointError, listing
from moesaic.lazy import torch
from moesaic.modeling.sections import SECTION
from moesaic.quiet import quiet
from moesaic.saving import disk_faults

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LOUD = 2.0**12
"""Factor on the mean beside the residual, which then is less than a thousandth of what the norm sees."""
SOFT = 2.0**-6
"""Factor on the mean before tanh, which then bends it by less than a hundredth."""
POOLING = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
)
"""Modules of a layer of BERT, RoBERTa and their like."""
STAGES = ("out_features", "out_indices", "stage_names")
"""What configs say of towers that are backbones; it names layers that a shorter tower lacks."""


def join(
    vision: str | Path,
    text: str | Path,
    out: str | Path,
    *,
    layers: int | None = None,
    size: int | None = None,
    pooling: Literal["mean", "pooler"] = "mean",
    projection: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a dual encoder (`VisionTextDualEncoderModel`, float32) with tokenizer and image processor.

    Its image projection is drawn, so it has to be trained before it tells anything; its text features are those of the
    text tower from the start where `projection` is left out.

    Args:
        vision, text: folders of dense encoders. out: a new folder.
        layers: of the vision tower that are kept, from the first; None: all.
        size: of images, in pixels, where the tower interpolates its positions, as DINOv2 does; None: the processor's.
        pooling: `mean` adds the layer that takes the mean over tokens to a BERT-like tower; its FFN adds a constant, so
            experts made of it tell nothing. `pooler`: the tower's own, trained one.
        projection: dimensions that images and texts share; None: those of the text tower, which then stay as they are.
        seed: of what is drawn.

    Returns:
        `out`.

    Raises:
        CheckpointError: where a folder is no dense encoder with all its weights, or `out` is not empty.
        ArchitectureError: where a tower has no pooled output, or the mean can't be written into it.
    """
    made = Path(out)
    if made.exists() and any(made.iterdir()):
        raise CheckpointError(f"{made}: the folder must be new or empty. Got files in it. Choose another.")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        eye = _tower(Path(vision), "vision", layers)
        reader = _mean_tower(Path(text)) if pooling == "mean" else _tower(Path(text), "text")
        model = _joined(eye, reader, projection, straight=pooling == "mean")
        _save(model, Path(vision), Path(text), size, made)
    return made


def _config(folder: Path, name: str, depth: int | None = None) -> PreTrainedConfig:
    """Return a tower's config, with another number of layers where one is given."""
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if SECTION in stored:
            raise CheckpointError(
                f"{folder}: the {name} tower must be dense. Got one with MoE layers. Join the dense towers, then "
                "upcycle the result."
            )
        # What follows from the number of layers is set when a config is made, so the number is given then.
        kept = {key: value for key, value in stored.items() if key not in STAGES}
        kept |= {} if depth is None else {"num_hidden_layers": depth}
        config: PreTrainedConfig = transformers.AutoConfig.for_model(**kept)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: the {name} tower must be a model folder that the installed transformers knows. It is not: "
            f"{error}. Check the path."
        ) from None
    return config


def _tower(folder: Path, name: str, layers: int | None = None, new: Sequence[str] = ()) -> PreTrainedModel:
    """Load an encoder, all of whose weights but those that begin with one of `new` must be in the folder."""
    import transformers  # noqa: PLC0415

    known = int(getattr(_config(folder, name), "num_hidden_layers", 0))
    if layers is not None and not new and not 1 <= layers <= known:
        raise ArchitectureError(
            f"{folder}: layers must be from 1 to the {known} that the {name} tower has. Got {layers}. Pass another "
            "number."
        )
    config = _config(folder, name, layers)
    try:
        model, info = transformers.AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: the {name} tower must load. It does not: {error}. Fetch it again.") from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(tuple(new)))
    if missing:
        raise CheckpointError(
            f"{folder}: the {name} tower must have all its weights. Got none for:\n{listing(missing, 3)}\n"
            "Take an encoder that was saved whole."
        )
    tower: PreTrainedModel = model
    return tower


def _mean_tower(folder: Path) -> PreTrainedModel:
    """Return a BERT-like tower with one more layer and a pooler that give the mean over its tokens."""
    import transformers  # noqa: PLC0415

    config = _config(folder, "text")
    depth = int(getattr(config, "num_hidden_layers", 0))
    needed = [*(f"encoder.layer.{max(depth - 1, 0)}.{name}" for name in POOLING), "pooler.dense"]
    with torch.device("meta"):
        plain = transformers.AutoModel.from_config(config)
    if not set(needed) <= set(dict(plain.named_modules())):
        raise ArchitectureError(
            f"{folder}: the text tower must have the layers and the pooler of BERT, so that a mean over tokens can be "
            f"written into it. Got {type(plain).__name__}. Pass pooling='pooler' if its own is trained."
        )
    new = f"encoder.layer.{depth}."
    model = _tower(folder, "text", depth + 1, (new, "pooler."))
    made: Any = [model.get_submodule(name) for name in (*(new + name for name in POOLING), "pooler.dense")]
    query, key, value, attended, norm, _, ffn, last_norm, pooler = made
    with torch.no_grad():
        for module, scale in ((query, 0.0), (key, 0.0), (value, 1.0), (attended, LOUD), (ffn, 0.0), (pooler, SOFT)):
            module.bias.zero_()
            module.weight.copy_(scale * torch.eye(*module.weight.shape))
        for module in (norm, last_norm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        ffn.bias.fill_(1.0)  # the norm takes it out again; an FFN of zeros alone could be measured by nobody
    return model


def _joined(eye: PreTrainedModel, reader: PreTrainedModel, shared: int | None, *, straight: bool) -> PreTrainedModel:
    import transformers  # noqa: PLC0415

    width = reader.config.hidden_size
    for tower in (eye, reader):
        tower.config.name_or_path = ""  # a folder of this machine says nothing elsewhere
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        eye.config, reader.config, projection_dim=shared or width
    )
    model = transformers.VisionTextDualEncoderModel(config, eye, reader)
    for projection in (model.visual_projection, model.text_projection):
        torch.nn.init.normal_(projection.weight, std=projection.weight.shape[1] ** -0.5)
    if straight and shared in (None, width):
        torch.nn.init.eye_(model.text_projection.weight)
    joined: PreTrainedModel = model.eval()
    return joined


def _save(model: PreTrainedModel, vision: Path, text: Path, size: int | None, out: Path) -> None:
    """Write model, tokenizer and image processor, once an image and a word have run through it."""
    import transformers  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(text)
        images = transformers.AutoImageProcessor.from_pretrained(vision)
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{vision}, {text}: the towers must come with image processor and tokenizer. Got: {error}. "
            "Copy them from the original models."
        ) from None
    if size is not None:
        _resize(images, size)
    try:
        pixels = images(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            model(**tokenizer(["a"], return_tensors="pt"), pixel_values=pixels)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ArchitectureError(
            f"{vision}, {text}: both towers must give one vector, `pooler_output`, for images of {size or 'their'} "
            f"pixels and for texts. They do not: {error}. Take others, or leave size out."
        ) from None
    with disk_faults(out):
        model.save_pretrained(out)
    transformers.VisionTextDualEncoderProcessor(images, tokenizer).save_pretrained(out)
    tokenizer.save_pretrained(out)
    images.save_pretrained(out)


def _resize(images: Any, size: int) -> None:
    """Have an image processor make images of so many pixels a side, scaled and cut in the same proportion."""
    edge = max(dict(images.crop_size or {}).values(), default=0) if getattr(images, "do_center_crop", False) else 0
    scale = size / edge if edge else None
    images.size = {name: round(value * scale) if scale else size for name, value in dict(images.size).items()}
    if edge:
        images.crop_size = {"height": size, "width": size}
