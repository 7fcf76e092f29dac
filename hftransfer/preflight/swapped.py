"""Whether the labels of one split stand for others in train: a word count model that is right under other names.

Naive Bayes on hashed words and pairs of words learns from train and guesses another split. Where another assignment of
names to classes fits its guesses far better than the names themselves, the names were mixed up on the way.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hftransfer.data.copies import plain_rows
from hftransfer.preflight.findings import Finding
from hftransfer.preflight.rows import SplitRows

BUCKETS = 1 << 16
MOST_ROWS, MOST_CLASSES, FEWEST_ROWS = 20_000, 100, 50
WORDS_PER_ROW = 300
GAIN, DEVIATIONS = 0.15, 5.0
"""How much better the other assignment must be: in accuracy, and in standard deviations of the difference."""


def swapped_labels(rows: Mapping[str, SplitRows]) -> list[Finding]:
    """Splits whose class names are permuted against those of train; single labels alone."""
    train, found = rows["train"], []
    names = sorted(set(train.labels or ()))
    if not 2 <= len(names) <= MOST_CLASSES or len(train) < FEWEST_ROWS:
        return []
    others = [split for split in rows.values() if split.name != "train" and len(split) >= FEWEST_ROWS]
    if not others:
        return []
    from scipy.optimize import linear_sum_assignment

    index = {name: number for number, name in enumerate(names)}
    weights_BC, priors_C = _learn(*_sample(train, index), len(names))
    for split in others:
        texts, gold_N = _sample(split, index)
        guessed_N = _guess(texts, weights_BC, priors_C)
        confusion_CC = np.zeros((len(names), len(names)), np.int64)
        np.add.at(confusion_CC, (gold_N, guessed_N), 1)
        gold_C, guessed_C = linear_sum_assignment(-confusion_CC)
        before, after = int(np.trace(confusion_CC)), int(confusion_CC[gold_C, guessed_C].sum())
        if after - before >= max(GAIN * len(texts), DEVIATIONS * np.sqrt(after + before)):
            moved = [
                f"{names[one]!r} for {names[other]!r}"
                for one, other in zip(gold_C, guessed_C, strict=True)
                if one != other
            ]
            found.append(
                Finding(
                    "swapped_labels",
                    "warning",
                    f"the labels seem to stand for others than in train: {', '.join(moved[:4])} (words of train guess "
                    f"{before / len(texts):.0%} of the labels as they are, {after / len(texts):.0%} renamed)",
                    split.name,
                    "compare the numbering of the classes in both files",
                    {"accuracy": before / len(texts), "renamed": after / len(texts)},
                )
            )
    return found


def _sample(split: SplitRows, index: Mapping[str, int]) -> tuple[list[str], NDArray[np.int64]]:
    """Evenly spaced rows and the numbers of their classes."""
    assert split.labels is not None
    step = -(-len(split) // MOST_ROWS)
    joined = plain_rows(split.texts)
    kept = [row for row in range(0, len(split), step) if split.labels[row] in index]
    return [joined[row] for row in kept], np.asarray([index[split.labels[row]] for row in kept], np.int64)


def _features(text: str) -> list[int]:
    """The buckets of a text's words and pairs of words, each once."""
    words = text.split()[:WORDS_PER_ROW]
    pairs = [f"{one} {other}" for one, other in itertools.pairwise(words)]
    return list({zlib.crc32(part.encode("utf-8", "replace")) % BUCKETS for part in (*words, *pairs)})


def _learn(
    texts: Sequence[str], labels_N: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities of the buckets in every class, (B, C), and of the classes, (C,); counts start at one half."""
    counts_BC = np.full((BUCKETS, classes), 0.5)
    for text, label in zip(texts, labels_N.tolist(), strict=True):
        counts_BC[_features(text), label] += 1.0
    priors_C = np.bincount(labels_N, minlength=classes) + 0.5
    return np.log(counts_BC / counts_BC.sum(axis=0)), np.log(priors_C / priors_C.sum())


def _guess(texts: Sequence[str], weights_BC: NDArray[np.float64], priors_C: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray([int((weights_BC[_features(text)].sum(axis=0) + priors_C).argmax()) for text in texts], np.int64)
