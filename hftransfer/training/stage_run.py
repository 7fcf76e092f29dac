"""What the steps of one stage work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from hftransfer.caching.states import StageInputs
    from hftransfer.training.graphs import Graphs
    from hftransfer.training.schedule import StageSteps
    from hftransfer.training.trackers import RunLog
    from hftransfer.training.updates import Update


@dataclass(frozen=True)
class StageRun:
    """What the steps of one stage work with: wrapped model and optimizer, the peak rate of each group, inputs, log."""

    current: StageSteps
    model: nn.Module
    optimizer: Any
    peak_rates: list[float]
    inputs: StageInputs
    log: RunLog
    graphs: Graphs | None = None
    update: Update | None = None

    def set_rates(self, factor: float) -> None:
        """Set the learning rate of every group to a share of its peak."""
        rates = [peak * factor for peak in self.peak_rates]
        if self.update is not None:
            self.update.set_rates(rates)
            return
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
