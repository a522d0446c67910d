"""Whether a dense model is the one that a MoE was made from: refused where it can't be, told where it is not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.architectures import DenseFamily, Wrapper, records
from moesaic.certification.source import Source
from moesaic.checkpoints.audit import audit
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.errors import CertificateError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_record(record: Mapping[str, Any], moe: Path) -> None:
    """Refuse a folder whose moesaic.json tells of no conversion.

    Raises:
        CertificateError: where it does not.
    """
    if missing := {"source", "target", "spec", "experts", "preserves_function"} - record.keys():
        raise CertificateError(
            f"{moe}: the model must be a MoE that moesaic made. Its moesaic.json says no {', '.join(sorted(missing))}. "
            "Give the folder that `moesaic upcycle` or a training of it wrote."
        )


def is_source(dense: DenseCheckpoint, record: Mapping[str, Any]) -> bool:
    """Whether a dense model has the weights that moesaic.json records, however they are sharded."""
    source = record["source"]
    if "fingerprint" in source:
        return fingerprint(dense) == str(source["fingerprint"])
    return audit(dense, min(os.cpu_count() or 1, 8), lambda _: None) == dict(source["sha256"])


def check_stock(dense: Source, moe: Source, record: Mapping[str, Any]) -> None:
    """Refuse a dense model of another class or size than that from which a stock MoE was made.

    Raises:
        CertificateError: naming both.
    """
    kind = str(record["source"]["model_type"])
    if (got := _text_type(dense.config)) != kind:
        raise _refusal(dense.checkpoint.folder, record, "of its class", kind, got)
    down = next(entry.name for entry in records(DenseFamily)[kind].table if entry.role == "down")
    spec = record["spec"]
    width = dense.checkpoint.infos.get(dense.on_disk(down.format(layer=spec["moe_layers"][0])))
    sizes = _sizes(moe, spec["width"]), _sizes(dense, width.shape[-1] if width else 0)
    if sizes[0] != sizes[1]:
        raise _refusal(dense.checkpoint.folder, record, "of its size", *sizes)


def check_spliced_class(dense: Path, config: Mapping[str, Any], wanted: str, record: Mapping[str, Any]) -> None:
    """Refuse a dense model whose config.json names another class than the one in which MoE layers are spliced.

    Raises:
        CertificateError: naming both.
    """
    if (got := next(iter(config.get("architectures") or ()), "none")) != wanted:
        raise _refusal(dense, record, "of its class", wanted, got)


def check_spliced_sizes(
    dense: Path, models: Sequence[PreTrainedModel], entries: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> None:
    """Refuse a dense model whose tensors are of other shapes than those around and under the MoE layers.

    Args:
        models: dense and MoE, of one class. entries: of every MoE layer.

    Raises:
        CertificateError: naming the first of them.
    """
    dense_shapes, moe_shapes = ({n: list(t.shape) for n, t in model.state_dict().items()} for model in models)
    inside = tuple(f"{path}." for entry in entries for path in (*entry["first"], entry["last"]))
    wanted = {name: moe_shapes.get(name) for name in {**moe_shapes, **dense_shapes} if not name.startswith(inside)}
    for entry in entries:
        ends = [entry["hidden"], entry["width"]]
        wanted[f"{entry['last']}.weight"] = ends[::-1] if entry["transposed"] else ends
    for name, shape in wanted.items():
        if dense_shapes.get(name) != shape:
            raise _refusal(dense, record, "of its size", _of(name, shape), _of(name, dense_shapes.get(name)))


def _of(name: str, shape: list[int] | None) -> str:
    return f"no {name}" if shape is None else f"{name} of {shape}"


def _text_type(config: Mapping[str, Any]) -> str:
    """Return the model type of a model's text part, or of the model where it is no composite."""
    wrapper = records(Wrapper).get(str(config.get("model_type")))
    text = config.get(wrapper.text_key) if wrapper else config
    return str(text.get("model_type")) if isinstance(text, Mapping) else "none"


def _sizes(source: Source, width: int) -> str:
    vocab, hidden = source.vocab_and_hidden
    return f"{source.num_layers} layers, hidden size {hidden}, FFN width {width}, vocabulary {vocab}"


def _refusal(dense: Path, record: Mapping[str, Any], what: str, wanted: str, got: str) -> CertificateError:
    name = record["source"]["name"]
    return CertificateError(
        f"{dense}: the dense model must be '{name}', which the MoE was made from, or another {what}: {wanted}. "
        f"Got {got}. Give '{name}'."
    )
