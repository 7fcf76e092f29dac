"""The scores as `evaluate.Metric` objects that work offline: `hftransfer.metrics.load("f1")`."""

from __future__ import annotations

from hftransfer.tasks.evaluate_metrics import load, names

__all__ = ["load", "names"]
