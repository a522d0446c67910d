"""How the processes under torchrun share a model: nothing of our own, transformers' `DistributedConfig` and DDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from moesaic.calibration.ranks import Ranks
from moesaic.errors import TrainingError

Parallel = Literal["data", "fsdp2", "experts"]


@contextmanager
def sharing(parallel: Parallel, ranks: Ranks) -> Iterator[None]:
    """Let models loaded inside the block be cut among the processes as they are read, each its own part.

    Args:
        parallel: data: every process has all weights (DDP wraps them later). fsdp2: each has its share of every
            weight. experts: the same, but experts stay where they are, and tokens go to them and come back.

    Raises:
        TrainingError: where there is one process, or transformers can't do it for the model.
    """
    arguments = _arguments(parallel, ranks)
    if not arguments:
        with nullcontext():
            yield
        return
    from moesaic.modeling.loading import loading_with  # noqa: PLC0415  # brings torch

    with loading_with(**arguments):
        yield


def _arguments(parallel: Parallel, ranks: Ranks) -> dict[str, Any]:
    """Return what `from_pretrained` is to be told."""
    if parallel == "data":
        return {}
    if ranks.size < 2:
        raise TrainingError(
            f"training.parallel: {parallel} must have at least two processes. Got one. Start with torchrun "
            "--nproc-per-node N -m moesaic train ..., or choose data."
        )
    try:
        from transformers.distributed.configuration_utils import DistributedConfig  # noqa: PLC0415  # not in transformers 4
    except ImportError:
        raise TrainingError(
            f"training.parallel: {parallel} must have transformers 5. Got an older one. Install it, or choose data."
        ) from None
    if parallel == "fsdp2":
        return {"distributed_config": DistributedConfig(fsdp_size=ranks.size)}
    whole = DistributedConfig(fsdp_size=ranks.size, ep_size=ranks.size, ep_implementation="all_to_all")
    return {"distributed_config": whole}
