"""Linear probe, then fine-tune (arXiv:2202.10054): the head is trained before it can distort the features."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy, head_stage


class LpFt(Strategy):
    """Train the head alone, then everything."""

    type: ClassVar[str] = "lp_ft"
    probes_head: ClassVar[bool] = True

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """Two stages: the head, then everything at one rate."""
        share = self.settings.probe_share
        return (head_stage(self.type, anatomy, share), Stage("everything", 0, 1 - share, shared_rate=True))
