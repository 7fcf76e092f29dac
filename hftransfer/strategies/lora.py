"""LoRA through PEFT (arXiv:2106.09685), with DoRA (arXiv:2402.09353) and rsLoRA (arXiv:2312.03732) as variants."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies import adapters
from hftransfer.strategies.base import Stage, Strategy
from hftransfer.strategies.top_layers import boundary_of_top


class Lora(Strategy):
    """Low-rank adapters in the blocks at or above the boundary; the head is always trained and saved."""

    type: ClassVar[str] = "lora"

    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """One stage: the adapters and the head."""
        top = self.settings.top_blocks
        boundary = 1 if top is None else boundary_of_top(top, anatomy, "strategy.top_blocks")
        return (Stage("adapters and head", boundary),)

    def learns(self, name: str, depth: int, stage: Stage, anatomy: Anatomy) -> bool:
        """Adapters and the trained copy of the head."""
        return "lora_" in name or ".modules_to_save." in name

    def insert(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        """Wrap the model in PEFT with adapters from the boundary up."""
        from peft import LoraConfig, get_peft_model

        settings = self.settings
        targets = self._target_modules(model, anatomy)
        config = LoraConfig(
            task_type=adapters.peft_task_type(model),
            r=settings.r,
            lora_alpha=2 * settings.r if settings.alpha is None else settings.alpha,
            lora_dropout=settings.dropout,
            use_dora=settings.variant == "dora",
            use_rslora=settings.variant == "rslora",
            target_modules=targets,
            modules_to_save=adapters.head_modules(model, anatomy),
            fan_in_fan_out=adapters.are_transposed(model, targets),
        )
        return get_peft_model(model, config)

    def _target_modules(self, model: nn.Module, anatomy: Anatomy) -> list[str]:
        """Full paths, so that no ending matches a module outside of the chosen blocks."""
        where = "strategy.targets"
        paths = adapters.linear_layers(model, anatomy, self.stages(anatomy)[0].boundary)
        targets = self.settings.targets
        if targets == "all_linear":
            return paths
        if isinstance(targets, list):
            return adapters.ending_in(paths, targets, where)
        family = adapters.family_targets(model, where)
        return adapters.ending_in(paths, family.query_value if targets == "query_value" else family.attention, where)

    def finish(self, model: nn.Module) -> nn.Module:
        """Fold the adapters into the weights if the recipe says so."""
        return adapters.merge(model) if self.settings.merge else model
