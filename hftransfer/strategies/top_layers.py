"""Top layers: one stage with the boundary at L + 1 - k."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy


def boundary_of_top(k: int, anatomy: Anatomy, where: str) -> int:
    """The boundary that lets the top k blocks learn.

    Raises:
        StrategyError: If the model has fewer than k blocks of its own.
    """
    if k > anatomy.num_blocks:
        shared = f" (one set of weights, applied {anatomy.shared_repeats} times)" if anatomy.shared_repeats > 1 else ""
        raise StrategyError(
            f"{k} blocks asked for, but {anatomy.model_class} has {anatomy.num_blocks}{shared}",
            where=where,
            fix=f"choose 1 to {anatomy.num_blocks}",
        )
    return anatomy.head_depth - k


class TopLayers(Strategy):
    """Train the head and the top k blocks."""

    type: ClassVar[str] = "top_layers"

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """One stage: the top k blocks and the head."""
        k = self.settings.k
        return (Stage(f"top {k} blocks", boundary_of_top(k, anatomy, "strategy.k")),)
