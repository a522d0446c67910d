"""Evaluation of dense models and MoEs: numbers with confidence intervals, on the user's data or on real small data."""

from __future__ import annotations

from moesaic.evaluation.base import EvaluationTask, Opened, Place
from moesaic.evaluation.driver import Evaluation, Score, evaluate, records_of, scores
from moesaic.evaluation.intervals import Difference, Interval, Metric, difference, interval

__all__ = [
    "Difference",
    "Evaluation",
    "EvaluationTask",
    "Interval",
    "Metric",
    "Opened",
    "Place",
    "Score",
    "difference",
    "evaluate",
    "interval",
    "records_of",
    "scores",
]
