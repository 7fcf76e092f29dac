"""Gradual unfreezing: descending stages from the head to depth 0 (ULMFiT, arXiv:1801.06146, section 3.3)."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy, shares

# The last stage, with everything unfrozen, gets this many times the steps of each stage before it.
LAST_STAGE_WEIGHT = 3.0


class GradualUnfreezing(Strategy):
    """Unfreeze from the head down; the optimizer is rebuilt at each stage."""

    type: ClassVar[str] = "gradual_unfreezing"
    probes_head: ClassVar[bool] = True

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """Boundaries spread evenly from L + 1 down to 0."""
        count = self.settings.stages
        if count > anatomy.head_depth + 1:
            raise StrategyError(
                f"{count} stages asked for, but {anatomy.model_class} has {anatomy.head_depth + 1} depths",
                where="strategy.stages",
                fix=f"choose 2 to {anatomy.head_depth + 1}",
            )
        boundaries = [round(anatomy.head_depth * (1 - index / (count - 1))) for index in range(count)]
        weights = [1.0] * (count - 1) + [LAST_STAGE_WEIGHT]
        return tuple(
            Stage(f"depth {boundary} and up", boundary, share, shared_rate=boundary != anatomy.head_depth)
            for boundary, share in zip(boundaries, shares(weights), strict=True)
        )
