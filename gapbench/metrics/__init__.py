"""Figures over verdicts: pure functions of a data frame, with no model and no store."""

from gapbench.metrics.metric import METRICS
from gapbench.metrics.rates import rates

__all__ = ["METRICS", "rates"]
