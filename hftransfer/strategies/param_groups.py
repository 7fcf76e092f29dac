"""Optimizer groups: layer-wise learning rates and weight decay only where it belongs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

# Learned rescalings (IA3) and magnitudes (DoRA) act like norms: decaying them towards zero would switch layers off.
NEVER_DECAYED = ("ia3_l", "lora_magnitude_vector")


def depth_learning_rate(
    depth: int, head_depth: int, learning_rate: float, head_rate: float, layer_decay: float
) -> float:
    """Peak rate at a depth (arXiv:1801.06146, section 3.2).

    The head has its own; below it the rate is `learning_rate * layer_decay ** (L - depth)`.
    """
    return head_rate if depth >= head_depth else learning_rate * layer_decay ** (head_depth - 1 - depth)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight matrices and embeddings decay; biases, norms and learned scales do not."""
    return parameter.ndim >= 2 and not any(marker in name for marker in NEVER_DECAYED)


def build_param_groups(
    parameters: Iterable[tuple[str, nn.Parameter, int]],
    *,
    head_depth: int,
    learning_rate: float,
    head_learning_rate: float | None,
    weight_decay: float,
    layer_decay: float,
) -> list[dict[str, Any]]:
    """Group (name, parameter, depth) triples by depth and decay.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `depth`, from the lowest depth up.
    """
    head_rate = learning_rate if head_learning_rate is None else head_learning_rate
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter, depth in parameters:
        groups.setdefault((depth, decays(name, parameter)), []).append(parameter)
    return [
        {
            "params": members,
            "lr": depth_learning_rate(depth, head_depth, learning_rate, head_rate, layer_decay),
            "weight_decay": weight_decay if decayed else 0.0,
            "depth": depth,
        }
        for (depth, decayed), members in sorted(groups.items(), key=lambda item: item[0])
    ]
