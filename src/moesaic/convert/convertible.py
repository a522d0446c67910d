"""What a checked conversion offers to the writer, whichever way to a MoE it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from moesaic.convert.options import Options
from moesaic.plan import Plan
from moesaic.routers.base import RouterInit
from moesaic.spec import LayerSpec
from moesaic.stats import Seen


class Convertible(Protocol):
    """A conversion into a stock class, or one that splices; everything that decides the output's bytes."""

    @property
    def options(self) -> Options:
        """The user's choices."""

    @property
    def router(self) -> RouterInit:
        """The router init in use."""

    @property
    def layers(self) -> Mapping[int, LayerSpec]:
        """MoE layer -> its numbers."""

    @property
    def seen(self) -> Mapping[int, Seen]:
        """MoE layer -> what calibration saw of its dense FFN; empty where no method asks."""

    @property
    def factors(self) -> tuple[float, float]:
        """Factors on the last linear of the shared expert and of the routed experts."""

    @property
    def plan(self) -> Plan:
        """Every output tensor and where its bytes come from."""

    @property
    def config(self) -> dict[str, Any]:
        """The config.json to write."""

    @property
    def source_type(self) -> str:
        """Model type of the dense model, or of its text part."""

    @property
    def target_type(self) -> str:
        """Model type of the result."""

    @property
    def extent(self) -> str:
        """Which FFNs become MoE, in words: `all 30 layers`."""

    @property
    def loading(self) -> tuple[str, str]:
        """The class that loads the result, and the one that loads what reads its inputs (tokenizer or processor)."""

    @property
    def code(self) -> tuple[Path, ...]:
        """Python files that the folder must hold, so that transformers can load it."""
