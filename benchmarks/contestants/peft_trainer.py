"""PEFT's LoRA in transformers' Trainer.

Settings: as those of `benchmarks.contestants.trainer`, with r, alpha, dropout, targets and, maybe, top_blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model

from benchmarks.contestants.common import Spec
from benchmarks.contestants.trainer import train


def insert(model: Any, settings: Mapping[str, Any]) -> Any:
    """Adapters in all blocks or the top ones; the pooler and the head learn whole, as with hftransfer."""
    count, top = model.config.num_hidden_layers, settings.get("top_blocks")
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=list(settings["targets"]),
        layers_to_transform=None if top is None else list(range(count - top, count)),
        modules_to_save=["pooler", "classifier"],
    )
    return get_peft_model(model, config)


if __name__ == "__main__":
    train(Spec.from_command_line(), insert)
