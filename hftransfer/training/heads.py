"""Many heads on the same frozen states, trained at once: seeds, rates and decays as one more dimension of every weight.

The head is the model's own, taken as the chain of its modules behind the cached vector and checked against the model.
What a training alone would do, each head does: its own initial weights, order of examples, dropout and clipping.

Shape legend: S heads, N rows, B rows of a batch, D width of a state, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hftransfer.recipe import Recipe
from hftransfer.strategies.freezing import anatomy_of, transformers_model
from hftransfer.strategies.param_groups import decays
from hftransfer.tasks.base import CELLS, ROW_WEIGHTS, Features, Task
from hftransfer.training.graphs import seed_dropout
from hftransfer.training.schedule import rate_factor
from hftransfer.training.steps import EpochBatches, step_seed

TOLERANCE = 1e-4


class NoChainError(Exception):
    """The head is not a chain of modules behind one vector; the message says why."""


class Chain(nn.Module):
    """The head of a sequence classifier as a function of the vector that it reads.

    Args:
        modules: Applied one after another.
        flat: Whether the first of them reads (B, D), not (B, 1, D).
    """

    def __init__(self, modules: Sequence[nn.Module], flat: bool) -> None:
        super().__init__()
        self.parts, self.flat = nn.ModuleList(modules), flat

    def forward(self, states_BD: Tensor) -> Tensor:
        """Logits (B, C) of states (B, D)."""
        hidden = states_BD if self.flat else states_BD[:, None]
        for part in self.parts:
            hidden = part(hidden)
        return hidden.flatten(0, -2)


def find_chain(model: nn.Module, run: Any, states_BD: Tensor) -> Chain:
    """The modules of the head in the order in which the model calls them.

    Args:
        model: A sequence classifier whose states are fed by `run`.
        run: Runs the model on the rows of `states_BD`; its outputs have `logits`.
        states_BD: Cached vectors of a few rows.

    Raises:
        NoChainError: If the model does more than call them one after another.
    """
    inner: Any = transformers_model(model)
    anatomy = anatomy_of(model)
    base = {id(module) for module in inner.base_model.modules()}
    candidates = [inner.get_submodule(path) for path in anatomy.pooler]
    candidates += [module for module in inner.children() if id(module) not in base]
    called: list[tuple[nn.Module, int]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: called.append((module, inputs[0].dim())))
        for module in candidates
    ]
    training = inner.training
    try:
        inner.eval()
        with torch.no_grad():
            expected_BC = run().logits
    finally:
        inner.train(training)
        for hook in hooks:
            hook.remove()
    if not called or len({id(module) for module, _ in called}) < len(called):
        raise NoChainError(f"the head of {type(inner).__name__} is no chain of modules")
    chain = Chain([module for module, _ in called], called[0][1] == 2).eval()
    with torch.no_grad():
        error = float((chain(states_BD) - expected_BC).abs().max() / (1 + expected_BC.abs().max()))
    if not error <= TOLERANCE:
        raise NoChainError(f"the head of {type(inner).__name__} does more than its modules one after another")
    return chain


def _turned(tensor_S: Tensor) -> Tensor:
    """Weight matrices with inputs before outputs, the order in which their gradients come: that spares a copy."""
    return tensor_S.mT if tensor_S.dim() > 2 else tensor_S


@dataclass
class HeadSettings:
    """How one head is trained.

    Attributes:
        seed: Of its order of examples and dropout.
        learning_rate: Its peak rate.
        weight_decay: Its decay.
    """

    seed: int
    learning_rate: float
    weight_decay: float


class Heads:
    """Heads in training; all have as many steps and batches of one size.

    Args:
        chain: The head; its weights are not used.
        starts: The initial weights of each head, by the names of the chain's parameters.
        settings: How each is trained.
        recipe: What they have in common.
        task: Computes losses.
        states_ND: The training rows' vectors.
        features: The training rows.
    """

    def __init__(
        self,
        chain: Chain,
        starts: Sequence[dict[str, Tensor]],
        settings: Sequence[HeadSettings],
        recipe: Recipe,
        task: Task,
        states_ND: Tensor,
        features: Features,
    ) -> None:
        self.chain, self.settings, self.recipe, self.task = chain, settings, recipe, task
        self.states_ND, self.features = states_ND, features
        optim = recipe.optim
        batch = optim.per_device_train_batch_size * optim.gradient_accumulation_steps
        # Heads with one seed see the same rows in the same order.
        self.batches = {
            seed: EpochBatches(features.lengths_N, batch, seed, features.extra.get(CELLS))
            for seed in {one.seed for one in settings}
        }
        self.per_epoch = next(iter(self.batches.values())).per_epoch
        self.total_steps = optim.max_steps or self.per_epoch * (optim.num_train_epochs or 1)
        self.weights = {
            name: _turned(_turned(torch.stack([one[name] for one in starts])).contiguous()) for name in starts[0]
        }
        self.optimizer = self._optimizer()
        assert isinstance(features.labels, np.ndarray)
        self.labels = torch.from_numpy(features.labels)

    def step(self, step: int) -> NDArray[np.float64]:
        """One optimizer step of every head; returns their losses, (S,)."""
        rows = [self.batches[one.seed][step] for one in self.settings]
        most = max(map(len, rows))
        padded_SB = np.stack([np.pad(one, (0, most - len(one)), mode="edge") for one in rows])
        weights = {name: tensor.requires_grad_() for name, tensor in self.weights.items()}
        seed_dropout(self.states_ND.device, step_seed(self.settings[0].seed, step, 0, 0))
        self.chain.train()
        logits_SBC = self._run(weights, self.states_ND[torch.from_numpy(padded_SB)])
        losses = []
        for place, own in enumerate(rows):
            batch = {"labels": self.labels[torch.from_numpy(own)]}
            if ROW_WEIGHTS in self.features.extra:
                batch[ROW_WEIGHTS] = torch.from_numpy(self.features.extra[ROW_WEIGHTS][own])
            total = self.task.loss(SimpleNamespace(logits=logits_SBC[place, : len(own)]), batch)
            losses.append(total / self.task.weight(self.features, own))
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(weights.values()))
        optim = self.recipe.optim
        factor = rate_factor(optim.lr_scheduler_type, step, self.total_steps, optim.warmup_ratio or 0.0)
        for tensor in self.weights.values():
            tensor.requires_grad_(False)
        self._update(gradients, factor)
        return np.asarray([float(loss.detach()) for loss in losses])

    def _run(self, weights: dict[str, Tensor], states_SBD: Tensor) -> Tensor:
        """Logits (S, B, C) of each head for its own rows."""

        def one(own: dict[str, Tensor], states_BD: Tensor) -> Tensor:
            found: Tensor = functional_call(self.chain, own, (states_BD,))
            return found

        found: Tensor = vmap(one, randomness="different")(weights, states_SBD)
        return found

    def _optimizer(self) -> torch.optim.AdamW:
        """One AdamW over the heads' slices of all weights, with a rate and a decay per head."""
        groups: list[dict[str, Any]] = []
        for place, one in enumerate(self.settings):
            for decayed in (True, False):
                parts = [
                    _turned(tensor)[place]
                    for tensor in self.weights.values()
                    if decays("", cast(Any, tensor[place])) == decayed
                ]
                decay = one.weight_decay if decayed else 0.0
                groups.append(
                    {"params": parts, "lr": one.learning_rate, "weight_decay": decay, "peak": one.learning_rate}
                )
        return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)

    @torch.no_grad()
    def _update(self, gradients: Sequence[Tensor], factor: float) -> None:
        """Clip each head's gradient and let the optimizer step; the slices share their memory with the weights."""
        limit = self.recipe.optim.max_grad_norm
        if limit > 0:
            norms_S = torch.stack([torch.linalg.vector_norm(one.flatten(1), dim=1) for one in gradients]).norm(dim=0)
            scales_S = (limit / (norms_S + 1e-6)).clamp_max(1.0)
            if bool((scales_S < 1.0).any()):
                gradients = [one * scales_S.view(-1, *(1,) * (one.dim() - 1)) for one in gradients]
        places = {tensor.data_ptr(): _turned(one) for tensor, one in zip(self.weights.values(), gradients, strict=True)}
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
            for part in group["params"]:
                whole = part._base
                part.grad = places[whole.data_ptr()][part.storage_offset() // part.numel()]
        self.optimizer.step()

    @torch.no_grad()
    def logits(self, states_MD: Tensor) -> Tensor:
        """Logits (S, M, C) of every head for the same rows, without dropout."""
        self.chain.eval()
        weights = {name: tensor.detach() for name, tensor in self.weights.items()}
        return torch.stack(
            [
                functional_call(self.chain, {name: tensor[place] for name, tensor in weights.items()}, (states_MD,))
                for place in range(len(self.settings))
            ]
        )

    def copies(self) -> list[dict[str, Tensor]]:
        """The weights of every head, by the names of the chain's parameters."""
        return [
            {name: tensor[place].detach().clone() for name, tensor in self.weights.items()}
            for place in range(len(self.settings))
        ]
