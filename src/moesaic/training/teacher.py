"""Expert-ensemble self-distillation."""

from __future__ import annotations


class EnsembleTeacher:
    """An average of the student over its steps, with all experts of every token."""
