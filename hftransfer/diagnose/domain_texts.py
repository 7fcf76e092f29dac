"""What can be told of texts without a model: pieces of a tokenizer, shared words, shifts of label and length.

Shape legend: N texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hftransfer.tasks.labels import label_name

WORD = re.compile(r"\w+|[^\w\s]")
"""A run of letters and digits, or one other sign."""
TOP_WORDS = 1000
SMALL_EXPECTATION = 5.0
"""Cells expected to hold fewer make the chi-square test approximate."""


@dataclass(frozen=True)
class Pieces:
    """How a tokenizer cuts the texts of one source.

    Attributes:
        words: How many words and signs the texts have.
        pieces: How many tokens they become, special tokens left out.
        unknown: How many of these are the unknown token.
        lengths_N: Tokens of each text.
    """

    words: int
    pieces: int
    unknown: int
    lengths_N: NDArray[np.int64]

    @property
    def per_word(self) -> float:
        """Pieces per word: 1 where every word is in the vocabulary."""
        return self.pieces / max(self.words, 1)

    @property
    def unknown_share(self) -> float:
        """Share of the pieces of which the model sees nothing."""
        return self.unknown / max(self.pieces, 1)


@dataclass(frozen=True)
class Overlap:
    """How much of its words one source shares with another.

    Attributes:
        top: Share of the most frequent words of both that are among those of the other, as in arXiv:2004.10964,
            figure 2.
        compared: How many most frequent words these are.
        unseen: Share of the second source's running words that the first does not have at all.
    """

    top: float
    compared: int
    unseen: float


@dataclass(frozen=True)
class Shift:
    """How far two samples of labels or lengths are apart.

    Attributes:
        size: Total variation of labels, from 0 to 1; the Kolmogorov-Smirnov statistic of numbers, likewise.
        statistic: Of the test: chi-square, or Kolmogorov-Smirnov.
        p_value: That samples of one distribution lie so far apart.
        test: "chi-square" or "Kolmogorov-Smirnov".
        note: What makes the test approximate, if anything.
    """

    size: float
    statistic: float
    p_value: float
    test: str
    note: str = ""


def cut_into_pieces(tokenizer: Any, texts: Sequence[str]) -> Pieces:
    """Tokenize texts, whole, without special tokens."""
    words = sum(len(WORD.findall(text)) for text in texts)
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    unknown_id = tokenizer.unk_token_id
    unknown = 0 if unknown_id is None else sum(row.count(unknown_id) for row in rows)
    return Pieces(words, sum(map(len, rows)), unknown, np.asarray([len(row) for row in rows], np.int64))


def words_of(texts: Sequence[str]) -> Counter[str]:
    """How often each word comes, in lower case and without signs."""
    return Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))


def overlap(first: Counter[str], second: Counter[str], top: int = TOP_WORDS) -> Overlap:
    """What two sources share.

    Args:
        first: Its words with their counts.
        second: Likewise.
        top: How many of the most frequent words to compare; fewer where one has fewer.
    """
    compared = min(top, len(first), len(second))
    most = [{word for word, _ in words.most_common(compared)} for words in (first, second)]
    unseen = sum(count for word, count in second.items() if word not in first)
    return Overlap(
        len(most[0] & most[1]) / compared if compared else math.nan, compared, unseen / max(second.total(), 1)
    )


def number_shift(first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any]) -> Shift:
    """The two-sample Kolmogorov-Smirnov test of lengths or of numeric labels."""
    found = stats.ks_2samp(np.asarray(first, np.float64), np.asarray(second, np.float64))
    return Shift(float(found.statistic), float(found.statistic), float(found.pvalue), "Kolmogorov-Smirnov")


def label_shift(first: Sequence[Any], second: Sequence[Any]) -> Shift:
    """How far the labels of two sources are apart: total variation and a chi-square test; numbers: as lengths.

    A text with a list of labels counts once for each of them, so that the test is then approximate.
    """
    if any(isinstance(value, float) and not value.is_integer() for value in [*first, *second]):
        return number_shift(first, second)
    lists = any(isinstance(value, list) for value in [*first, *second])
    counts = [Counter(_names(values)) for values in (first, second)]
    names = sorted(counts[0].keys() | counts[1].keys())
    table = np.asarray([[count[name] for name in names] for count in counts], np.float64)
    shares = table / table.sum(1, keepdims=True)
    size = float(np.abs(shares[0] - shares[1]).sum() / 2)
    if len(names) < 2:
        return Shift(size, 0.0, 1.0, "chi-square")
    found = stats.chi2_contingency(table, correction=False)
    notes = ["a text counts once for each of its labels"] if lists else []
    if found.expected_freq.min() < SMALL_EXPECTATION:
        notes.append("some labels are too rare for an exact test")
    return Shift(size, float(found.statistic), float(found.pvalue), "chi-square", "; ".join(notes))


def _names(values: Sequence[Any]) -> list[str]:
    """Labels by name, lists one by one; a list without any is a label of its own."""
    return [
        label_name(member)
        for value in values
        for member in ((value or ["(none)"]) if isinstance(value, list) else [value])
    ]
