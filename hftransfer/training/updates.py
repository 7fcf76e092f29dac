"""Clipping and update on one GPU without a wait: what came of a step is read some steps later, of several at once.

A loss or a gradient that is no finite number is noticed on the GPU. It holds the weights, and the moments of AdamW,
where they were before that step, until the CPU has seen it: no such step, and none behind it, reaches them.

Shape legend: G optimizer groups, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hftransfer.training.graphs import Recorded, Recorder, pinned, reason_of, switched_off

if TYPE_CHECKING:
    from hftransfer.training.loop import Training
    from hftransfer.training.stage_run import StageRun

MOST_WAITING = 16
"""Steps whose losses are read at once, at most."""


class Update:
    """Clips, updates and zeroes the gradients; from its second time on as a CUDA graph.

    Args:
        model: Its parameters that learn.
        optimizer: Fused AdamW over them, prepared. Its rates live on the device from now on.
        max_norm: The gradient's largest norm.
        recorder: Records what is repeated.
        say: Tells the user.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, max_norm: float, recorder: Any, say: Callable[[str], None]
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.max_norm, self.recorder, self.say = max_norm, recorder, say
        self.replayed = 0
        device = self.parameters[0].device
        groups = self.optimizer.param_groups
        self._rates_G = torch.tensor([float(group["lr"]) for group in groups], device=device)
        for rate, group in zip(self._rates_G.unbind(), groups, strict=True):
            group["lr"] = rate
        # Its kernel leaves weights, moments and counters alone where this is not 0.
        self._held = self.optimizer.found_inf = torch.zeros((), device=device)
        self._loss = torch.zeros((), device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._found_K2 = torch.zeros(MOST_WAITING, 2, device=device)
        self._waiting: list[int] = []
        self._recorded: Recorded | None = None
        self._count = 0

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of every group."""
        self._rates_G.copy_(pinned(torch.tensor(rates), self._rates_G.device), non_blocking=True)

    def add(self, loss: torch.Tensor, share: float) -> torch.Tensor:
        """Add a micro-batch's loss times its share to the step's, which is returned as far as it is known."""
        return self._loss.add_(loss, alpha=share)

    def run(self, step: int) -> None:
        """Update the weights with the gradients of a step.

        Raises:
            RuntimeError: If as many steps wait as there is room for.
        """
        if self.is_full:
            raise RuntimeError("read what came of the steps so far before the next one")
        # AdamW makes its moments when a parameter has a gradient for the first time, which must not be recorded.
        count = sum(parameter.grad is not None for parameter in self.parameters)
        if count != self._count:
            self._recorded = None
        elif self._recorded is None and not self.recorder.broken:
            self._record()
        if self._recorded is None or self.recorder.broken:
            self._update()
        else:
            self.replayed += 1
            self._recorded.replay()
        self._count = count
        self._waiting.append(step)

    @property
    def is_full(self) -> bool:
        """Whether no step may follow before some are read."""
        return len(self._waiting) == MOST_WAITING

    def read(self) -> list[tuple[int, float, bool]]:
        """Wait for the steps since the last time: number, loss, and whether loss and gradient are finite, of each."""
        found, waiting = self._found_K2.tolist(), self._waiting
        self._waiting = []
        self._place.zero_()
        values = zip(waiting, found, strict=False)
        return [(step, loss, math.isfinite(loss) and math.isfinite(norm)) for step, (loss, norm) in values]

    def drop(self) -> None:
        """Forget the losses of a step that was begun and is not made."""
        self._loss.zero_()

    def _record(self) -> None:
        # torch asks for this word while it records, and warns of it else.
        self._set_capturable(True)
        try:
            self._recorded, _ = self.recorder.record(self._update)
        except RuntimeError as error:
            self.say(f"Updates run kernel by kernel: {reason_of(error)}")
        finally:
            self._set_capturable(False)

    def _set_capturable(self, value: bool) -> None:
        for group in self.optimizer.param_groups:
            group["capturable"] = value

    def _update(self) -> torch.Tensor:
        """What is recorded; returns what came of the steps so far, (K, 2)."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        found_2 = torch.stack([self._loss, norm.to(self._loss)])
        self._held.copy_(torch.maximum(self._held, 1.0 - found_2.isfinite().all().to(self._held)))
        self.optimizer.step()
        self._found_K2.index_copy_(0, self._place, found_2[None])
        self._place.add_(1).remainder_(MOST_WAITING)
        self._loss.zero_()
        torch._foreach_zero_([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        return self._found_K2


def must_wait(training: Training) -> bool:
    """Whether every step of a training is waited for."""
    from accelerate.utils import DistributedType

    accelerator = training.accelerator
    alone_on_gpu = accelerator.device.type == "cuda" and accelerator.distributed_type == DistributedType.NO
    # Scaled gradients of fp16, penalties behind the update, the moving average: each follows every step.
    followed = accelerator.scaler is not None or training.recipe.optim.retain != "none" or training.kept.rule == "ema"
    return not alone_on_gpu or followed or switched_off()


def update_of_stage(training: Training, now: StageRun) -> Update | None:
    """What updates the weights of a stage without a wait; None where every step waits."""
    if must_wait(training) or now.current.stage.objective != "task":
        return None
    recorder = Recorder(training.accelerator.device) if now.graphs is None else now.graphs.recorder
    max_norm = training.recipe.optim.max_grad_norm or math.inf
    return Update(now.model, now.optimizer, max_norm, recorder, now.log.say)
