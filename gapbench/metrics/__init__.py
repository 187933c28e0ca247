"""Figures over verdicts: pure functions of a data frame, with no model and no store."""

from gapbench.metrics.rates import METRICS, rates

__all__ = ["METRICS", "rates"]
