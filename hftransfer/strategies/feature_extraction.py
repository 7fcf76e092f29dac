"""Feature extraction: one stage with the boundary at the head."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy, head_stage


class FeatureExtraction(Strategy):
    """Freeze the backbone, train the head."""

    type: ClassVar[str] = "feature_extraction"
    probes_head: ClassVar[bool] = True

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """One stage: the head alone."""
        return (head_stage(self.type, anatomy),)
