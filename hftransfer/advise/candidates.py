"""What the advisor chooses among: strategies with their settings.

A further strategy is added to `STRATEGIES` alone. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Make: TypeAlias = Callable[[int, int, int], list[dict[str, Any]]]
"""From the numbers of blocks, examples and classes to the settings of a strategy."""

RANKS, HIGH_RANK_FROM = (8, 32), 1000
"""LoRA's rank below and from this many examples on: there is more to learn than a low rank can hold."""
HANDFUL = 64
"""Up to so many examples of a class pairs are formed: the larger few-shot size of SetFit's paper (arXiv:2209.11055)."""


@dataclass(frozen=True)
class Candidate:
    """One thing to do.

    Attributes:
        name: For tables, and the key under which measured results are kept.
        strategy: Settings of the strategy, `type` included.
        kind: What is known of it is known of its kind: strategy and share of the blocks.
    """

    name: str
    strategy: Mapping[str, Any]
    kind: str

    @property
    def type(self) -> str:
        """The strategy's type."""
        return str(self.strategy["type"])


def _top_layers(num_blocks: int, train_examples: int, classes: int) -> list[dict[str, Any]]:
    """A third and two thirds of the blocks."""
    ks = sorted({max(1, round(num_blocks / 3)), max(1, round(2 * num_blocks / 3))} - {num_blocks})
    return [{"type": "top_layers", "k": k} for k in ks]


def _lora(num_blocks: int, train_examples: int, classes: int) -> list[dict[str, Any]]:
    return [{"type": "lora", "r": RANKS[train_examples >= HIGH_RANK_FROM]}]


def _gradual_unfreezing(num_blocks: int, train_examples: int, classes: int) -> list[dict[str, Any]]:
    return [{"type": "gradual_unfreezing", "stages": min(4, num_blocks + 2)}]


def _contrastive(num_blocks: int, train_examples: int, classes: int) -> list[dict[str, Any]]:
    return [{"type": "contrastive"}] if train_examples <= HANDFUL * classes else []


def _plain(type: str) -> Make:
    return lambda num_blocks, train_examples, classes: [{"type": type}]


STRATEGIES: tuple[Make, ...] = (
    _plain("feature_extraction"),
    _top_layers,
    _plain("lp_ft"),
    _gradual_unfreezing,
    _lora,
    _plain("full_fine_tuning"),
    _contrastive,
)
"""What makes the settings of a strategy that are worth trying; cheap ones first."""


def candidates(num_blocks: int, train_examples: int, classes: int = 0) -> list[Candidate]:
    """All candidates for a model and an amount of data.

    Args:
        num_blocks: L.
        train_examples: Rows to train on, without those for validation.
        classes: Of which every text has one; 0 where texts have no single class, or pairs of them cannot be formed.
    """
    found = []
    for settings in (one for make in STRATEGIES for one in make(num_blocks, train_examples, classes)):
        kind = str(settings["type"])
        if settings.get("k", 0) > num_blocks / 2:
            kind += ", most blocks"
        found.append(Candidate(label(settings), settings, kind))
    return found


def label(settings: Mapping[str, Any]) -> str:
    """Type and settings in a few words."""
    shown = [f"{name}={value}" for name, value in settings.items() if name in ("k", "r")]
    return " ".join([str(settings["type"]), *shown])
