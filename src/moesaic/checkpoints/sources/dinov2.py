"""A DINOv2-small fine-tuned for saliency, from ONNX to transformers' Dinov2Model; its saliency head is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.checkpoints.sources.fit import check_fit
from moesaic.checkpoints.sources.onnx import Graph, read_graph
from moesaic.checkpoints.sources.writer import Tensor, write_json, write_model

CONFIG: Mapping[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_swiglu_ffn": False,
    "dtype": "float32",
}
PREPROCESSOR: Mapping[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def make(files: Sequence[Path], out: Path) -> None:
    """Write the model folder of the ONNX file."""
    tensors = [
        Tensor(name, "F32", array.shape, partial(np.asarray, array)) for name, array in _arrays(read_graph(files[0]))
    ]
    check_fit("dinov2-small-focus", CONFIG, tensors)
    write_model(out, CONFIG, tensors)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)


def _arrays(graph: Graph) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name, array in graph.initializers.items():
        if name.startswith("backbone."):
            yield name.removeprefix("backbone."), array
    for node, array in graph.weights.items():
        module = node.strip("/").removesuffix("/MatMul").replace("/", ".")
        yield f"{module.removeprefix('backbone.')}.weight", array.T  # ONNX multiplies from the other side
    width, positions = CONFIG["hidden_size"], (CONFIG["image_size"] // CONFIG["patch_size"]) ** 2
    unnamed = {array.shape: array for name, array in graph.initializers.items() if name.startswith("onnx::")}
    parts = [unnamed[1, count, width] for count in (1, positions)]
    yield "embeddings.position_embeddings", np.concatenate(parts, axis=1)
    yield "embeddings.mask_token", np.zeros((1, width), dtype=np.float32)  # for masked pretraining only; not exported
