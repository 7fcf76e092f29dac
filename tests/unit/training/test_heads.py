"""Heads that are trained at once: each comes out as if it were trained alone, by torch's own AdamW."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features
from hftransfer.training.heads import Chain, Heads, HeadSettings
from hftransfer.training.schedule import rate_factor

WIDTH, CLASSES, ROWS = 6, 3, 40


class OwnTask:
    """The two things that heads ask of a task."""

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(outputs.logits, batch["labels"], reduction="sum")

    def weight(self, features: Any, rows: Any) -> float:
        return float(len(rows))


def chain() -> Chain:
    return Chain([nn.Flatten(1), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)], flat=False)


def features() -> Features:
    rng = np.random.default_rng(0)
    return Features({}, np.arange(ROWS + 1), rng.integers(0, CLASSES, ROWS), np.arange(ROWS))


def weights_of(module: Chain) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_each_head_is_what_a_training_alone_gives(limit: float) -> None:
    recipe = Recipe(
        checkpoint="m",
        optim={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 16,
            "max_grad_norm": limit,
            "warmup_ratio": 0.2,
        },
    )
    rows, states_ND = features(), torch.randn(ROWS, WIDTH)
    settings = [HeadSettings(1, 1e-2, 0.1), HeadSettings(2, 1e-2, 0.1), HeadSettings(1, 5e-2, 0.0)]
    starts = [weights_of(chain()) for _ in settings]
    task: Any = OwnTask()
    heads = Heads(chain(), starts, settings, recipe, task, states_ND, rows)
    losses = [heads.step(step) for step in range(heads.total_steps)]
    for place, (one, start) in enumerate(zip(settings, starts, strict=True)):
        alone = chain()
        alone.load_state_dict(start)
        decayed = [p for p in alone.parameters() if p.dim() > 1]
        plain = [p for p in alone.parameters() if p.dim() == 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": one.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        )
        for step in range(heads.total_steps):
            own = torch.from_numpy(heads.batches[one.seed][step])
            loss = functional.cross_entropy(alone(states_ND[own]), torch.from_numpy(np.asarray(rows.labels))[own])
            assert float(loss.detach()) == pytest.approx(losses[step][place], abs=1e-5)
            optimizer.zero_grad()
            loss.backward()
            if limit:
                nn.utils.clip_grad_norm_(alone.parameters(), limit)
            for group in optimizer.param_groups:
                group["lr"] = one.learning_rate * rate_factor("linear", step, heads.total_steps, 0.2)
            optimizer.step()
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(heads.copies()[place][name], parameter.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(heads.logits(states_ND)[place], alone(states_ND).detach(), atol=1e-4, rtol=1e-4)


def test_dropout_differs_between_heads_and_is_repeatable() -> None:
    recipe = Recipe(checkpoint="m", optim={"num_train_epochs": 1, "per_device_train_batch_size": 20})
    start = weights_of(Chain([nn.Flatten(1), nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES)], flat=False))
    states_ND, task = torch.randn(ROWS, WIDTH), OwnTask()

    def losses() -> Any:
        module = Chain([nn.Flatten(1), nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES)], flat=False)
        both = [HeadSettings(1, 1e-2, 0.0)] * 2
        return Heads(
            module,
            [start] * 2,
            both,
            recipe,
            SimpleNamespace(loss=task.loss, weight=task.weight),
            states_ND,
            features(),
        ).step(0)  # type: ignore[arg-type]

    first = losses()
    assert first[0] != first[1]
    assert np.array_equal(first, losses())
