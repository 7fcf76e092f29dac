"""BitFit: the bias terms of the blocks and the head (arXiv:2106.10199)."""

from __future__ import annotations

from typing import ClassVar

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies.base import Stage, Strategy


class BitFit(Strategy):
    """Train bias terms; the embeddings stay frozen, so the boundary is at the first block."""

    type: ClassVar[str] = "bitfit"

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """One stage: biases from the first block up.

        Raises:
            StrategyError: If no block has a bias term (T5, Llama, ModernBERT).
        """
        if not any(
            name.endswith("bias") and 1 <= depth < anatomy.head_depth for name, depth in anatomy.parameter_depth.items()
        ):
            raise StrategyError(
                f"the blocks of {anatomy.model_class} have no bias terms",
                where="strategy.type bitfit",
                fix="choose lora, ia3 or top_layers for this model",
            )
        return (Stage("biases and head", 1),)

    def learns(self, name: str, depth: int, stage: Stage, anatomy: Anatomy) -> bool:
        """Biases from the boundary up, and everything in the head."""
        return depth >= stage.boundary and (depth == anatomy.head_depth or name.endswith("bias"))
