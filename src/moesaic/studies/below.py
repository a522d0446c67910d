"""What stands below the first MoE layer: the same for every method, so that a study may leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

from moesaic.checkpoints.dense import read_json
from moesaic.convert.choosing import choose
from moesaic.errors import StudyError, brief
from moesaic.lazy import torch
from moesaic.planning import ffns
from moesaic.spec import Layers


@lru_cache(maxsize=1)
def below(dense: Path, layers: Layers, tower: str | None = None, trains: int = 0) -> tuple[str, ...]:
    """Return the modules of a tower below the first layer that is to become MoE: its embeddings, and whole layers.

    Embeddings are what the tower's class holds before its layers (OPT: its last norm, too); an output layer that is
    tied to them is among them.

    Args:
        dense: folder of the dense model. layers, tower: as for `moesaic.upcycle`.
        trains: layers right below the first MoE layer that are left out.

    Raises:
        PlanError: where there are no such layers. StudyError: where they stand in more than one tower.
    """
    from moesaic.modeling.loading import model_class  # noqa: PLC0415  # imports transformers
    from moesaic.modeling.twin import skeleton  # noqa: PLC0415

    sites = ffns(str(dense)).sites
    chosen = choose(sites, layers, tower).values()
    stack, *others = dict.fromkeys(site.tower for site in chosen)
    if others:
        raise StudyError(
            f"{dense}: what is below the MoE layers must be of one tower. Got {brief([stack, *others])}. Write a study "
            "of your own that names what is frozen."
        )
    model = skeleton(*model_class(read_json(dense / "config.json")))
    end = max(min(site.layer[0] for site in chosen) - trains, 0)
    return (*_before(model, stack), *(f"{stack}.{layer}" for layer in range(end)))


def _before(model: torch.nn.Module, stack: str) -> Iterator[str]:
    """Yield what stands before the layers, level by level; what the outermost level holds is of other towers."""
    paths = list(accumulate(stack.split("."), lambda parent, child: f"{parent}.{child}"))
    for parent, path in pairwise(paths) if len(paths) > 1 else [("", stack)]:
        for name, child in model.get_submodule(parent).named_children():
            place = f"{parent}.{name}" if parent else name
            if place == path:
                break
            if any(True for _ in child.parameters()):
                yield place
