"""Router losses and balancers: one file, one frozen dataclass each; pure functions of one layer's routing."""

from moesaic.losses.base import Balancer, RouterLoss, WeightLoss

__all__ = ["Balancer", "RouterLoss", "WeightLoss"]
