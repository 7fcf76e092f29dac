"""Stands in for CUDA graphs on a CPU: what is recorded is run again."""

from __future__ import annotations

import torch

from hftransfer.training import loop
from hftransfer.training.graphs import Graphs
from hftransfer.training.updates import Update


class Repeats:
    """Records a pass on a CPU: the pass is run again, into the same tensor. Recording itself computes nothing."""

    def __init__(self, error=None, factor=1.0):
        self.error, self.factor, self.recorded, self.broken = error, factor, 0, False

    def record(self, run):
        if self.error is not None:
            self.broken = True
            raise self.error
        self.recorded += 1
        loss, outer = torch.zeros(()), self

        class Pass:
            def replay(self):
                found = run()
                # An update returns its own tensor, where everything is already.
                if found.ndim == 0:
                    loss.copy_(found * outer.factor)

        return Pass(), loss


class Never(Repeats):
    """Stands for a recorder whose graphs are never ready."""

    def __init__(self):
        super().__init__(RuntimeError("this cannot be recorded\nand that is why"))


def run_ahead(monkeypatch, recorder=Repeats):
    """Let trainings on a CPU run as on a GPU; returns all `Graphs` and `Update`s that are made."""
    made = []

    def graphs(training, now):
        inputs = now.inputs.splits["train"]
        made.append(Graphs(inputs, training.task.pad_values, torch.device("cpu"), now.log.say, recorder()))
        return made[-1]

    def update(training, now):
        max_norm = training.recipe.optim.max_grad_norm or float("inf")
        of_stage = recorder() if now.graphs is None else now.graphs.recorder
        made.append(Update(now.model, now.optimizer, max_norm, of_stage, now.log.say))
        return made[-1]

    monkeypatch.setattr(loop, "graphs_of_stage", graphs)
    monkeypatch.setattr(loop, "update_of_stage", update)
    return made
