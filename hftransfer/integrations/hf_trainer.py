"""A strategy in transformers' Trainer.

    model = strategy.apply(model)
    trainer = Trainer(model=model, args=args, train_dataset=data, optimizers=trainer_optimizers(strategy, model, args))

`apply` keeps frozen modules in eval mode although Trainer calls `model.train()`, so dropout is off where nothing
learns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hftransfer.errors import StrategyError
from hftransfer.strategies import Stage, Strategy
from hftransfer.strategies.freezing import anatomy_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


def trainer_optimizers(
    strategy: Strategy,
    model: nn.Module,
    args: TrainingArguments,
    *,
    head_learning_rate: float | None = None,
    layer_decay: float = 1.0,
    stage: Stage | None = None,
) -> tuple[torch.optim.Optimizer, None]:
    """The `optimizers` argument of Trainer: AdamW over the strategy's groups; Trainer makes the scheduler.

    Args:
        strategy: The strategy that was applied to the model.
        model: What `strategy.apply` returned.
        args: The Trainer's arguments: learning rate, weight decay, betas and epsilon are read.
        head_learning_rate: Peak rate of the head, if it is not the same.
        layer_decay: Factor per block.
        stage: The stage to train. A strategy of several stages needs one Trainer for each, since an optimizer that
            was built before a block thawed does not train it.

    Raises:
        StrategyError: If the strategy has several stages and none is named, or the stage has a loss of its own.
    """
    stages = strategy.stages(anatomy_of(model))
    if stage is None and len(stages) > 1:
        names = ", ".join(found.name for found in stages)
        raise StrategyError(
            f"{strategy.type} has {len(stages)} stages ({names})",
            where="Trainer",
            fix="make one Trainer per stage of strategy.stages(...) and pass it as stage=",
        )
    stage = stage or stages[0]
    if stage.objective == "pairs":
        raise StrategyError(
            f"stage {stage.name!r} of {strategy.type} learns from pairs of texts; Trainer minimises the task's loss",
            where="Trainer",
            fix="train with hftransfer.finetune, or minimise hftransfer.training.contrastive.contrastive_loss yourself",
        )
    strategy.enter_stage(model, stage)
    groups = strategy.param_groups(
        model,
        args.learning_rate,
        head_learning_rate=head_learning_rate,
        weight_decay=args.weight_decay,
        layer_decay=layer_decay,
    )
    return torch.optim.AdamW(groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon), None
