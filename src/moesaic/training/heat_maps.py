"""Pictures of the routers while a model trains, for TensorBoard: a cell a number, without axes, so without plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moesaic.lazy import np
from moesaic.training.health import LayerHealth

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVERY = 10
"""Rows of the log from one picture to the next; the first and the last row have one, too."""
CELL = 12
"""Pixels of a cell's side."""
COLUMNS = 128
"""Rows of the log in a picture over time, at most; of more, so many evenly chosen."""
ENTROPY = "router/health/entropy/"
LOAD_MAP, ENTROPY_MAP = "router/heat_map/load", "router/heat_map/entropy"
DIVERGING = ("#e66101", "#fdb863", "#f7f7f7", "#b2abd2", "#5e3c99")
"""PuOr of ColorBrewer, and cividis (Nunez et al. 2018): told apart by the colour-blind."""
GROWING = ("#00224e", "#434e6c", "#7d7c78", "#bcae6c", "#fee838")
NOTHING = 128
"""Grey of cells without a number, as where layers have fewer experts than others."""


class HeatMaps(TrainerCallback):
    """Draws load by layer and expert, and entropy by layer and time, at every tenth row of HF Trainer's log.

    In `router/heat_map/load` a row is a layer, in the order of the text beside the pictures, and a column an expert:
    white has its fair share, purple up to 8 times that, orange down to an eighth. In `router/heat_map/entropy` a column
    is a row of the log, the first on the left: yellow is an entropy of ln E, dark blue of 0.

    Args:
        writer: of TensorBoard; None in other processes than the first. health: called after each window of steps, in
            all processes: what `Health.read` returned. every: rows of the log from one picture to the next.
    """

    def __init__(
        self, writer: SummaryWriter | None, health: Callable[[], Mapping[str, LayerHealth]], *, every: int = EVERY
    ) -> None:
        self._writer, self._health, self._every = writer, health, every
        self._rows, self._drawn = 0, -1
        self._latest: Mapping[str, LayerHealth] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the health of a window of steps into the log, and draw where it is time."""
        if logs is None or "loss" not in logs:
            return
        self._latest = self._health()
        for layer, health in self._latest.items():
            state.log_history[-1].update(health.rows(layer))
        if self._rows % self._every == 0:
            self._draw(state)
        self._rows += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the last row."""
        if self._drawn < state.global_step:
            self._draw(state)

    def _draw(self, state: TrainerState) -> None:
        if self._writer is None or not self._latest:
            return
        if self._drawn < 0:
            names = "\n".join(f"{place}. `{layer}`" for place, layer in enumerate(self._latest, 1))
            self._writer.add_text("router/heat_map", f"Rows of the heat maps, from the top:\n\n{names}", 0)
        maps = {
            LOAD_MAP: load_map([health.load for health in self._latest.values()]),
            ENTROPY_MAP: entropy_map(list(self._latest), state.log_history),
        }
        for tag, pixels_HW3 in maps.items():
            self._writer.add_image(tag, pixels_HW3, state.global_step, dataformats="HWC")
        self._writer.flush()
        self._drawn = state.global_step


def load_map(loads: Sequence[Sequence[float]]) -> np.ndarray:
    """Return load over fair share, on a logarithmic scale from 1/8 to 8: bytes [H, W, 3].

    Args:
        loads: of each layer, the share of assignments of each of its experts; zeros where no token came.
    """
    fair_LE = np.full((len(loads), max(map(len, loads))), np.nan)
    for row_E, load in zip(fair_LE, loads, strict=True):
        row_E[: len(load)] = np.asarray(load) * len(load) if any(load) else np.nan
    return _cells((np.log2(np.clip(fair_LE, 1 / 8, 8)) + 3) / 6, DIVERGING)


def entropy_map(layers: Sequence[str], rows: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Return entropy / ln E over time: bytes [H, W, 3].

    Args:
        layers: a row each. rows: of a log; a column each, where they hold an entropy.
    """
    held = [row for row in rows if any(ENTROPY + layer in row for layer in layers)]
    kept = [held[place] for place in np.linspace(0, len(held) - 1, min(len(held), COLUMNS)).round().astype(int)]
    return _cells(np.array([[row.get(ENTROPY + layer, np.nan) for row in kept] for layer in layers]), GROWING)


def _cells(values_LC: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """Return squares of colour for values of 0-1, which the colours stand evenly for; NaN is grey."""
    anchors_A3 = np.array([list(bytes.fromhex(colour[1:])) for colour in colours], float)
    places_A = np.linspace(0, 1, len(colours))
    made_LC3 = np.stack([np.interp(values_LC, places_A, channel_A) for channel_A in anchors_A3.T], axis=-1)
    bytes_LC3 = np.where(np.isnan(values_LC)[..., None], NOTHING, made_LC3.round()).astype(np.uint8)
    return bytes_LC3.repeat(CELL, axis=0).repeat(CELL, axis=1)
