"""Remedies against forgetting that act in every step: L2-SP, EWC and mixout hold pretrained weights near their values.

L2-SP (Li et al. 2018, arXiv:1802.01483) and EWC (Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3)
minimise the loss + s/2 * sum of F * (w - w0)^2, with F = 1 or the diagonal of the Fisher information, scaled to a mean
of 1. An adaptive optimizer would normalise the penalty's gradient away together with the loss's, so it acts behind the
update, as AdamW's decay does (arXiv:1711.05101), by its proximal step: the w that minimises
lr * penalty(w) + |w - u|^2 / 2, u being the updated weight, which no strength makes unstable:

    w = u + (w0 - u) * lr s F / (1 + lr s F)

AdamW moves no weight by much more than lr per step, so at rest a weight is within about 1 / (s F) of w0. Its decay
towards zero is off for the weights that are pulled.

Mixout (Lee et al. 2020, arXiv:1909.11299) computes each step with a random share p of the pretrained
matrices put back to w0 and the rest moved on by 1 / (1 - p), so that the expectation is w. The draw follows from (seed,
step) alone and is the same for all rows and processes of a step.

"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Weights = Mapping[str, torch.Tensor]

MIXOUT_STREAM = 1_000_003
"""Tells mixout's draws from those of dropout, which have the micro-step in this place."""


@dataclass
class Anchor:
    """A weight that is held.

    Attributes:
        parameter: The weight.
        pretrained: Its pretrained values, w0.
        importance: F; None for 1.
    """

    parameter: torch.nn.Parameter
    pretrained: torch.Tensor
    importance: torch.Tensor | None = None

    def follow(self) -> Anchor:
        """Go where the weight is."""
        device = self.parameter.device
        if self.pretrained.device != device:
            self.pretrained = self.pretrained.to(device)
            self.importance = None if self.importance is None else self.importance.to(device)
        return self


@dataclass
class Retention:
    """What a training does in every step to hold pretrained weights; without anchors nothing.

    Attributes:
        method: "none", "l2_sp", "ewc" or "mixout".
        strength: s of the penalties, p of mixout.
        anchors: Id of a parameter -> what it is held by.
    """

    method: str = "none"
    strength: float = 0.0
    anchors: dict[int, Anchor] = field(default_factory=dict)

    @property
    def pulls(self) -> bool:
        """Whether it acts behind the update."""
        return self.method in ("l2_sp", "ewc")

    def without_decay(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Optimizer groups in which weights that are pulled towards w0 do not decay towards zero as well."""
        if not self.pulls:
            return list(groups)
        found = []
        for group in groups:
            held = [weight for weight in group["params"] if id(weight) in self.anchors]
            free = [weight for weight in group["params"] if id(weight) not in self.anchors]
            if held and free and group["weight_decay"]:
                found += [{**group, "params": held, "weight_decay": 0.0}, {**group, "params": free}]
            else:
                found.append({**group, "weight_decay": 0.0} if held else group)
        return found

    @torch.no_grad()
    def pull(self, optimizer: Any) -> None:
        """The penalty's proximal step on the weights that an optimizer has just updated, with its rates."""
        if not self.pulls or getattr(optimizer, "step_was_skipped", False):
            return
        for group in optimizer.param_groups:
            for weight in group["params"]:
                anchor = self.anchors.get(id(weight))
                if anchor is not None:
                    proximal_step(weight, anchor.follow(), group["lr"] * self.strength)

    @contextlib.contextmanager
    def mixed(self, seed: int, step: int) -> Iterator[None]:
        """Let the model compute with mixed weights inside; outside it has its own again, with their gradients.

        Args:
            seed: The training's.
            step: The global step.
        """
        if self.method != "mixout" or not self.strength:
            yield
            return
        learning = [anchor.follow() for anchor in self.anchors.values() if anchor.parameter.requires_grad]
        own, kept = [anchor.parameter.data for anchor in learning], []
        generators: dict[torch.device, torch.Generator] = {}
        for anchor in learning:
            device = anchor.parameter.device
            if device not in generators:
                number = np.random.SeedSequence([seed, step, MIXOUT_STREAM]).generate_state(1, np.uint64)[0]
                generators[device] = torch.Generator(device).manual_seed(int(number >> np.uint64(1)))
            kept.append(draw_kept(anchor.parameter, self.strength, generators[device]))
        for anchor, keep in zip(learning, kept, strict=True):
            anchor.parameter.data = mixout(anchor.parameter.data, anchor.pretrained, self.strength, keep)
        try:
            yield
        finally:
            for anchor, data, keep in zip(learning, own, kept, strict=True):
                anchor.parameter.data = data
                if anchor.parameter.grad is not None:
                    # The chain rule through `mixout`.
                    anchor.parameter.grad.mul_(keep).div_(1.0 - self.strength)


def proximal_step(weight: torch.Tensor, anchor: Anchor, rate: float) -> None:
    """Move a weight to argmin over w of rate * sum F (w - w0)^2 / 2 + |w - weight|^2 / 2, in place."""
    if anchor.importance is None:
        weight.lerp_(anchor.pretrained, rate / (1.0 + rate))
        return
    share = anchor.importance * rate
    weight.lerp_(anchor.pretrained, share.div_(1.0 + share))


def draw_kept(weight: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Which weights stay as they are: 1 with probability 1 - share, else 0."""
    return torch.empty_like(weight, requires_grad=False).bernoulli_(1.0 - share, generator=generator)


def mixout(weight: torch.Tensor, pretrained: torch.Tensor, share: float, kept: torch.Tensor) -> torch.Tensor:
    """Weights with those that are not kept put back, unbiased: w0 + kept * (w - w0) / (1 - share).

    That is the paper's ((1 - kept) w0 + kept w - share w0) / (1 - share), with its terms in w0 together.

    Args:
        weight: w.
        pretrained: w0.
        share: p, below 1.
        kept: 1 where w stays, 0 where w0 takes its place.
    """
    return torch.addcmul(pretrained, weight - pretrained, kept, value=1.0 / (1.0 - share))
