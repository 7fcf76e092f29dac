"""What the advisor says of a recipe: which strategy, and which of several checkpoints. Nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hftransfer import advising
from hftransfer.advising import Advice
from hftransfer.advising.ranking import Ranked, in_order
from hftransfer.finetuning import prepare_all
from hftransfer.recipe import Recipe


def advise(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
) -> Advice:
    """Say what each strategy would score and cost, and recommend one (docs/advisor.md).

    The recipe's own strategy is not looked at. Other arguments, and errors, are those of `finetune`.
    """
    prepared = prepare_all(advising.probing_recipe(recipe), train=train, validation=validation, test=test)
    return advising.advise(prepared)


def rank(
    recipe: Recipe,
    checkpoints: Sequence[str],
    *,
    train: Any = None,
    validation: Any = None,
    origins: Mapping[str, str] | None = None,
) -> list[Ranked]:
    """Measure what several checkpoints' frozen features hold of the same rows' labels, best first (docs/advisor.md).

    Args:
        recipe: Data and task; its checkpoint and strategy are not looked at.
        checkpoints: Hub ids or local folders.
        train: Training data in memory.
        validation: Likewise.
        origins: Where given values come from.

    Raises:
        UserError: If data and a checkpoint do not fit together.
    """
    found = []
    for checkpoint in checkpoints:
        probing = advising.probing_recipe(recipe.model_copy(update={"checkpoint": checkpoint}))
        prepared = prepare_all(probing, train=train, validation=validation, origins=origins)
        started = time.perf_counter()
        reading, _ = advising.measure(prepared)
        parameters = sum(weight.numel() for weight in prepared.loaded.model.parameters())
        found.append(Ranked(checkpoint, reading, parameters, time.perf_counter() - started))
    return in_order(found)
