"""What the data are, before any model has read them: how many, how balanced, how long, how foreign to the tokenizer.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hftransfer.tasks.base import Features

SAMPLED_TEXTS = 1000
FRAGMENTED, UNKNOWN = 1.6, 0.01
"""Tokens per word, and share of unknown tokens, from which on texts count as unlike those of the checkpoint."""


@dataclass(frozen=True)
class Wording:
    """How a tokenizer takes the texts.

    Attributes:
        tokens_per_word: Tokens per word between blanks, special tokens left out.
        unknown: Share of tokens that are unknown.
        whole_words: Share of words that are one token.
    """

    tokens_per_word: float
    unknown: float
    whole_words: float

    @property
    def is_foreign(self) -> bool:
        """Whether the checkpoint has evidently seen other texts than these."""
        return self.tokens_per_word > FRAGMENTED or self.unknown > UNKNOWN


@dataclass(frozen=True)
class Facts:
    """What is known without a forward pass.

    Attributes:
        task: Name of the task.
        problem: Kind of labels, where the task has several.
        train_examples: Examples that are trained on.
        validation_examples: Examples that choose.
        classes: Class -> examples; empty for a task without classes.
        lengths: Mean, median, 95 % and longest, in tokens.
        max_length: Longest input.
        truncated: Training examples that lose tokens.
        duplicates: Training examples whose texts occur before.
        wording: How the tokenizer takes the texts.
    """

    task: str
    problem: str | None
    train_examples: int
    validation_examples: int
    classes: dict[str, int]
    lengths: tuple[float, int, int, int]
    max_length: int
    truncated: int
    duplicates: int
    wording: Wording

    @property
    def balance(self) -> float | None:
        """Entropy of the classes as a share of the most that as many could have; None without classes."""
        counts = np.asarray([count for count in self.classes.values() if count], float)
        if len(counts) < 2:
            return None
        share = counts / counts.sum()
        return float(-(share * np.log(share)).sum() / math.log(len(counts)))


def wording_of(texts: Sequence[str], tokenizer: Any) -> Wording:
    """How a tokenizer takes a sample of texts.

    Args:
        texts: Texts; the first `SAMPLED_TEXTS` are read.
        tokenizer: A transformers tokenizer.
    """
    words = [word for text in texts[:SAMPLED_TEXTS] for word in text.split()]
    if not words:
        return Wording(0.0, 0.0, 0.0)
    # A blank before a word is part of it to tokenizers that mark where words begin.
    encoded = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    counts = np.fromiter(map(len, encoded), np.int64, len(encoded))
    unknown = tokenizer.unk_token_id
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    lost = 0 if unknown is None or unknown in ends else sum(ids.count(unknown) for ids in encoded)
    return Wording(float(counts.mean()), lost / max(int(counts.sum()), 1), float((counts == 1).mean()))


def length_facts(train: Features) -> tuple[float, int, int, int]:
    """Mean, median, 95 % and longest input in tokens."""
    lengths = train.sequence_lengths
    middle, high, longest = (int(np.quantile(lengths, part, method="higher")) for part in (0.5, 0.95, 1.0))
    return float(lengths.mean()), middle, high, longest
