"""Training MoEs with any trainer: router objectives, stages, teachers."""

from moesaic.training.objective import RouterObjective

__all__ = ["RouterObjective"]
