"""How well a checkpoint's own language-modelling head guesses texts.

Encoders: pseudo-log-likelihood, one token masked at a time (Salazar et al. 2020, arXiv:1910.14659, equation 1), at a
random sample of the tokens. T5: the loss of its spans. Decoders: the plain loss of every token.

Shape legend: N texts, B rows of a batch, T tokens, M guessed tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.data.batching import random_order
from hftransfer.report.statistics import Interval, Statistic, bootstrap
from hftransfer.tasks import masking
from hftransfer.tasks.base import IGNORED, Features, Ragged, Task
from hftransfer.tasks.masked_lm import WORDS, MaskedLMTask
from hftransfer.training.language_model import LanguageModel, TextLosses

PLACES = "places_masked"
"""Name among a features' extras of the token that each row has masked."""
POSITIONS, LONGEST = 1000, 256
"""Tokens guessed one by one per source; tokens read of a text."""
STREAM = 73


@dataclass(frozen=True)
class TokenLosses(TextLosses):
    """What guessing the tokens of texts cost, and what was guessed, in words."""

    how: str

    def statistic(self) -> Statistic:
        """The mean as a function of the texts drawn."""
        sums_NS = np.stack([self.sums_N, self.tokens_N], axis=1)
        return Statistic(len(self.sums_N), sums_NS, lambda sums_RS: sums_RS[:, 0] / np.maximum(sums_RS[:, 1], 1))

    def interval(self) -> Interval:
        """The mean with its interval over texts."""
        return bootstrap(self.statistic())


def token_losses(model: LanguageModel, texts: Sequence[str], positions: int = POSITIONS) -> TokenLosses:
    """What guessing the texts' tokens costs; the same tokens whenever it is repeated.

    Args:
        model: Guesses.
        texts: The texts; those without a token to guess are left out.
        positions: Encoders: how many single tokens are masked, each with all others in sight.
    """
    task, features = model.task, model.encode(texts)
    how = "every token from those before it"
    if isinstance(task, MaskedLMTask) and task.spans:
        how = "spans of T5"
    elif isinstance(task, MaskedLMTask):
        features, task, total = _single(task, features, positions)
        sampled = f"{len(features):,} of {total:,}" if len(features) < total else f"all {total:,}"
        how = f"{sampled} tokens, masked one at a time"
    found = model.losses(features, task)
    guessed_N = found.tokens_N > 0
    return TokenLosses(found.sums_N[guessed_N], found.tokens_N[guessed_N], how)


class _OneByOne(MaskedLMTask):
    """Rows with one masked token each, which is always replaced by the mask token."""

    def collate(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> dict[str, torch.Tensor]:
        batch = Task.collate(self, features, rows, seed)
        places_B = torch.from_numpy(features.extra[PLACES][rows])
        every_B = torch.arange(len(rows))
        labels_BT = torch.full_like(batch["input_ids"], IGNORED)
        labels_BT[every_B, places_B] = batch["input_ids"][every_B, places_B]
        batch["input_ids"][every_B, places_B] = self.vocabulary.mask
        return {**batch, "labels": labels_BT}


def _single(task: MaskedLMTask, features: Features, positions: int) -> tuple[Features, MaskedLMTask, int]:
    """A row for each of a sample of all tokens that are no special ones; the task for them; the number of all."""
    words: Ragged = features.extra[WORDS]
    ordinary = np.flatnonzero(words.values != masking.SPECIAL)
    chosen = np.sort(ordinary[random_order(len(ordinary), 0, STREAM)[:positions]])
    rows = np.searchsorted(features.offsets_N1, chosen, side="right") - 1
    lengths = features.lengths_N[rows]
    flat = np.concatenate([np.arange(*features.offsets_N1[row : row + 2]) for row in rows])
    single = Features(
        columns={name: values[flat] for name, values in features.columns.items()},
        offsets_N1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=None,
        example_N=features.example_N[rows],
        extra={PLACES: chosen - features.offsets_N1[rows]},
    )
    one_by_one = _OneByOne(task.settings, task.data)
    one_by_one.vocabulary, one_by_one.pad_values = task.vocabulary, task.pad_values
    return single, one_by_one, len(ordinary)


def to_device(model: Any) -> None:
    """Move a model to the accelerator, if there is one."""
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
