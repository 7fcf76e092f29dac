"""Stages in optimizer steps, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hftransfer.strategies import Stage


@dataclass(frozen=True)
class StageSteps:
    """A stage with its range of optimizer steps: `start <= step < end`."""

    stage: Stage
    start: int
    end: int

    @property
    def steps(self) -> int:
        """How many optimizer steps the stage has."""
        return self.end - self.start


def split_steps(stages: Sequence[Stage], total_steps: int) -> list[StageSteps]:
    """Give every stage its share of the steps; the bounds are rounded, so that they add up to the total.

    Fixed numbers of steps come off the total first.
    """
    free = max(0, total_steps - sum(stage.steps or 0 for stage in stages))
    bounds, done, fixed = [0], 0.0, 0
    for stage in stages:
        done, fixed = done + stage.share, fixed + (stage.steps or 0)
        bounds.append(min(round(done * free) + fixed, total_steps))
    bounds[-1] = total_steps
    return [StageSteps(stage, start, end) for stage, start, end in zip(stages, bounds, bounds[1:], strict=False)]


def rate_factor(name: str, step: int, total_steps: int, warmup_ratio: float) -> float:
    """The learning rate at a step as a share of its peak: transformers' schedules, without state.

    Args:
        name: linear, cosine, constant_with_warmup or polynomial (quadratic, to zero).
        step: Step within the stage, from 0.
        total_steps: Steps of the stage.
        warmup_ratio: Share of the steps that ramps up from zero.
    """
    warmup = math.ceil(total_steps * warmup_ratio)
    if step < warmup:
        return step / max(1, warmup)
    if name == "constant_with_warmup":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return float((1.0 - progress) ** (2.0 if name == "polynomial" else 1.0))
