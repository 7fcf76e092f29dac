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
        """Boundaries spread evenly from L + 1 (L where the head has no weights of its own) down to 0."""
        count = self.settings.stages
        # A head that shares the weights of the embeddings has none of its own: the top block comes first.
        top = anatomy.head_depth if anatomy.head_parameters else anatomy.num_blocks
        if count > top + 1:
            raise StrategyError(
                f"{count} stages asked for, but {anatomy.model_class} has {top + 1} depths",
                where="strategy.stages",
                fix=f"choose 2 to {top + 1}",
            )
        boundaries = [round(top * (1 - index / (count - 1))) for index in range(count)]
        weights = [1.0] * (count - 1) + [LAST_STAGE_WEIGHT]
        return tuple(
            Stage(f"depth {boundary} and up", boundary, share, shared_rate=boundary != anatomy.head_depth)
            for boundary, share in zip(boundaries, shares(weights), strict=True)
        )
