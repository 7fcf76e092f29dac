"""Strategies: which weights learn, in which stage and at which rate."""

from __future__ import annotations

from hftransfer.strategies.base import Stage, Strategy
from hftransfer.strategies.registry import build_strategy, make_strategy

__all__ = ["Stage", "Strategy", "build_strategy", "make_strategy"]
