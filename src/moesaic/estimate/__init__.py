"""What a conversion would make and cost, from config.json alone: no weight is read, and neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from moesaic.convert import Conversion, Writing
from moesaic.estimate.advice import Advice, advice
from moesaic.estimate.disk import disk_rate
from moesaic.estimate.model import Becomes, Flops, Parameters, Training, becomes, flops, parameters, training
from moesaic.estimate.spliced import SplicedEstimate, estimate_spliced
from moesaic.estimate.tables import Table, tables
from moesaic.estimate.work import Memory, Seconds, Tensors, memory, seconds, tensors


@dataclass(frozen=True)
class Estimate:
    """All figures of a planned conversion.

    Args:
        becomes: what turns into what. parameters: of the dense model and the MoE. flops: per token. tensors: what is
            written. memory, seconds: of the conversion itself. training: memory of training the result, in bytes.
    """

    becomes: Becomes
    parameters: Parameters
    flops: Flops
    tensors: Tensors
    memory: Memory
    seconds: Seconds
    training: Training

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; bytes, seconds and FLOPs, never scaled."""
        return asdict(self)

    def tables(self) -> Iterator[Table]:
        """Yield (title, rows of label and text)."""
        return tables(self.becomes, self.parameters, self.flops, self.tensors, self.memory, self.seconds, self.training)


def estimate(
    conversion: Conversion, disk_rate: float | None, *, workers: int | None = None, context: int = 4096
) -> Estimate:
    """Return the figures of a planned conversion.

    Args:
        disk_rate: bytes per second that the target disk takes, None where unknown: then the time stays open.
        workers: threads; None: as many as `Writing` takes. context: tokens of a sequence, at least 1, for the attention
            term of the FLOPs; cut to what the model can take.
    """
    threads = Writing(workers=workers).threads
    return Estimate(
        becomes(conversion),
        parameters(conversion),
        flops(conversion, context),
        tensors(conversion),
        memory(conversion, threads),
        seconds(conversion, threads, disk_rate),
        training(conversion),
    )


__all__ = ["Advice", "Estimate", "SplicedEstimate", "advice", "disk_rate", "estimate", "estimate_spliced"]
