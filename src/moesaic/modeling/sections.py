"""The `moesaic` section of a config.json: which FFNs are MoE layers, and the numbers of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.sites import Site
from moesaic.spec import LayerSpec

SECTION = "moesaic"
PREFIX = "MoE"


def section(base: Mapping[str, Any], entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the section for a model with these MoE layers.

    Args:
        base: `model_type` and `class_name` of the stock model. entries: of every FFN that becomes MoE.
    """
    return {**base, "sites": list(entries)}


def entry(site: Site, layer: LayerSpec, stored: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what `spliced.MoELayer` is built from.

    Args:
        stored: paths of the linears on disk, the last one last; None: as in the model.
    """
    *first, last = stored or (*site.first, site.last)
    return {
        **site.to_json(),
        "stored": [first, last],
        "num_experts": layer.num_experts,
        "top_k": layer.top_k,
        "expert_size": layer.expert_size,
        "normalize_gates": layer.normalize_gates,
        "shared_size": layer.shared_width if layer.shared_expert else 0,
    }


def code_files() -> tuple[Path, ...]:
    """Return the files that a folder must hold, so that transformers splices without moesaic."""
    here = Path(__file__).parent
    return here / "spliced.py", here / "fast.py"


def auto_map(class_name: str) -> dict[str, str]:
    """Return config.json's `auto_map`: which class in `spliced.py` each of transformers' Auto classes takes.

    Args:
        class_name: of the stock model.
    """
    import transformers  # noqa: PLC0415  # seconds of import, needed here only
    from transformers.models.auto import modeling_auto  # noqa: PLC0415

    config: Any = getattr(transformers, class_name).config_class
    found = {"AutoConfig": config.__name__}
    for name, auto in vars(modeling_auto).items():
        if not (name.startswith("AutoModel") and isinstance(auto, type)):
            continue
        taken: Any = auto._model_mapping.get(config, ())  # type: ignore[attr-defined]  # noqa: SLF001
        classes = [cls.__name__ for cls in (taken if isinstance(taken, tuple) else (taken,))]
        if class_name in classes or (name == "AutoModel" and classes):
            found[name] = class_name if class_name in classes else classes[0]
    if class_name not in found.values():  # a class that no Auto class knows by itself
        found["AutoModel"] = class_name
    return {name: f"spliced.{PREFIX}{cls}" for name, cls in found.items()}
