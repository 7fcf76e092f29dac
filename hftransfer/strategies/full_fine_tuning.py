"""Full fine-tuning: one stage with the boundary at 0."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy


class FullFineTuning(Strategy):
    """Train everything."""

    type: ClassVar[str] = "full_fine_tuning"

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """One stage: everything."""
        return (Stage("everything", 0),)
