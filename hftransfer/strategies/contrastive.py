"""Contrastive tuning of the encoder on pairs of texts, then a head on frozen features (SetFit, arXiv:2209.11055)."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy


class Contrastive(Strategy):
    """Pull texts of one class together and others apart, then fit a linear head to where they lie."""

    type: ClassVar[str] = "contrastive"
    probes_head: ClassVar[bool] = True

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """Two stages: everything below the head on pairs, then the head alone in a single step.

        Raises:
            StrategyError: If the model sorts no texts into classes.
        """
        if not anatomy.model_class.endswith("ForSequenceClassification"):
            raise StrategyError(
                f"{anatomy.model_class} has no single vector per text to compare",
                where=f"strategy.type {self.type}",
                fix="use it for text_classification with one label per text, or choose another strategy",
            )
        return (
            Stage("pairs", 0, objective="pairs"),
            Stage("head", anatomy.head_depth, share=0.0, objective="fit", steps=1),
        )

    def learns(self, name: str, depth: int, stage: Stage, anatomy: Anatomy) -> bool:
        """All but the head, then the head alone."""
        return stage.boundary <= depth and (stage.objective != "pairs" or depth < anatomy.head_depth)
