"""What the contract asks of training: in every stage exactly what is meant to learn changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from hftransfer.models.load import LoadedModel


def copied(loaded: LoadedModel) -> LoadedModel:
    """A loaded model that may be changed; the given one stays as it was read."""
    return replace(loaded, model=deepcopy(loaded.model), tokenizer=deepcopy(loaded.tokenizer))


def train_all_stages(
    strategy: Any,
    model: Any,
    loaded: LoadedModel,
    loss_of: Callable[[Any], torch.Tensor],
    without_gradient: tuple[str, ...] = (),
    objectives: Mapping[str, Callable[[Any], Any]] | None = None,
) -> set[str]:
    """Two steps in every stage, in which exactly what is meant to learn changes; the names of what learned at all.

    A stage whose objective is not the task's is trained by that of `objectives`, if there are any: a loss, or what fits
    the head in one step.
    Parameters with one of the endings `without_gradient` need not change: what shifts all scores of a softmax alike has
    a gradient of rounding noise, and now and then none at all.
    """
    learned: set[str] = set()
    for stage in strategy.stages(loaded.anatomy):
        strategy.enter_stage(model, stage)
        learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        objective = (objectives or {}).get(stage.objective, loss_of)
        fits = objectives is not None and stage.objective == "fit"
        if fits:
            objective(model)
        else:
            _two_steps(strategy, model, objective)
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
        assert changed <= learns, (stage, changed - learns)
        rested = {name for name in learns - changed if not name.endswith(without_gradient)}
        # A fit writes what the regression needs, and may leave a norm or a bias as it is.
        assert changed if fits else not rested, stage
        learned |= learns
    return learned


def _two_steps(strategy: Any, model: Any, loss_of: Callable[[Any], torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW(strategy.param_groups(model, 1e-2))
    for _ in range(2):
        model.train()
        loss = loss_of(model)
        assert torch.isfinite(loss)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, name
        optimizer.step()
        optimizer.zero_grad()
