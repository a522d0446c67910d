"""Passes of a model over data, and all that is counted of them in constant memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moesaic.calibration.batching import Grouped
from moesaic.calibration.data import Kind
from moesaic.calibration.passes import Passes
from moesaic.calibration.readers import Reader
from moesaic.diagnostics.coactivation import PairCounts
from moesaic.diagnostics.layers import Counted
from moesaic.diagnostics.routing import RoutingCounts
from moesaic.diagnostics.samples import Samples
from moesaic.diagnostics.specialisation import TokenCounts
from moesaic.diagnostics.watching import Seen, Watch
from moesaic.errors import ObservationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Counting:
    """Runs batches through a model and counts what its routers decide.

    Args:
        model: of transformers. readers: of the data. groups: how many the data have.
    """

    def __init__(self, model: PreTrainedModel, readers: Mapping[Kind, Reader], groups: int) -> None:
        config: Any = model.config
        patch = getattr(getattr(config, "vision_config", config), "patch_size", None)
        self._watch = Watch(model, self._see, encoder_decoder=bool(config.is_encoder_decoder))
        layers = len(self._watch.blocks)
        self.samples = Samples(readers, groups, layers, patch if isinstance(patch, int) else None)
        self.sequences = 0
        self._routing, self._pairs, self._tokens = RoutingCounts(), PairCounts(), TokenCounts()
        self._passes = Passes(model, {})
        self._model = model

    def take(self, batch: Grouped) -> None:
        """Run one planned batch."""
        feed = batch.feed()
        self.samples.begin(batch.examples, feed)
        self.sequences += len(batch.examples)
        was = self._model.training
        self._model.eval()
        self._watch.begin(feed)
        try:
            with self._watch:
                self._passes.run(feed)
        finally:
            self._model.train(was)

    def finish(self, labels: Sequence[str]) -> Counted:
        """Return what was counted.

        Raises:
            ObservationError: where no MoE layer ran.
        """
        routing = self._routing.layers()
        if not routing:
            paths = [block.path for block in self._watch.blocks]
            raise ObservationError(
                f"{type(self._model).__name__}: the data must reach a MoE layer. None of {len(paths)} ran, the first "
                f"is {paths[0]}. Pass data of what its tower reads."
            )
        return Counted(routing, self._pairs, self._tokens, self.samples, labels)

    def _see(self, seen: Seen) -> None:
        self._routing.add(seen.routing)
        self._pairs.add(seen.routing)
        if seen.token_T is not None:
            self._tokens.add(seen.routing, seen.token_T)
        self.samples.add(seen)
