"""moesaic: turn a pretrained dense transformer into a sparse Mixture-of-Experts."""

__version__ = "0.1.0"
