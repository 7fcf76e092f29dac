"""IA3 through PEFT: learned rescaling of keys, values and feed-forward activations (arXiv:2205.05638)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies import adapters
from hftransfer.strategies.base import Stage, Strategy


class Ia3(Strategy):
    """One learned vector per rescaled layer; the head is always trained and saved."""

    type: ClassVar[str] = "ia3"

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """One stage: the scales and the head."""
        return (Stage("scales and head", 1),)

    def learns(self, name: str, depth: int, stage: Stage, anatomy: Anatomy) -> bool:
        """Scales and the trained copy of the head."""
        return "ia3_l" in name or ".modules_to_save." in name

    def insert(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        """Wrap the model in PEFT with scales in every block."""
        from peft import IA3Config, get_peft_model

        where = "strategy.type ia3"
        family = adapters.family_targets(model, where)
        paths = adapters.linear_layers(model, anatomy, 1)
        keys_values = adapters.ending_in(paths, family.key_value, where)
        # The attention's own output layer ends like the feed-forward one in BERT's naming.
        attention = set(adapters.ending_in(paths, family.attention, where))
        feed_forward = [
            path for path in adapters.ending_in(paths, family.feed_forward_out, where) if path not in attention
        ]
        targets = [*keys_values, *feed_forward]
        config = IA3Config(
            task_type=adapters.peft_task_type(model),
            target_modules=targets,
            feedforward_modules=feed_forward,
            modules_to_save=adapters.head_modules(model, anatomy),
            fan_in_fan_out=adapters.are_transposed(model, targets),
        )
        return get_peft_model(model, config)

    def finish(self, model: nn.Module) -> nn.Module:
        """Fold the adapters into the weights if the recipe says so."""
        return adapters.merge(model) if self.settings.merge else model
