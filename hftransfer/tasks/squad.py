"""SQuAD's own rules for comparing answers: exact match and F1 after normalisation, the best over all right answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, without ASCII punctuation, English articles and double spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 where both are the same after normalisation, else 0."""
    return float(normalise(answer) == normalise(gold))


def word_f1(answer: str, gold: str) -> float:
    """F1 of the words that answer and gold share; where one of them has none, 1 if both have none, else 0."""
    words, gold_words = normalise(answer).split(), normalise(gold).split()
    if not words or not gold_words:
        return float(words == gold_words)
    shared = (Counter(words) & Counter(gold_words)).total()
    return 2 * shared / (len(words) + len(gold_words))


def best_scores(answer: str, golds: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 against the gold answer that fits best. Without gold answers the right answer is none."""
    # Gold answers of nothing but punctuation and articles do not count, as in SQuAD 2.0's script.
    usable = [gold for gold in golds if normalise(gold)] or [""]
    return max(exact_match(answer, gold) for gold in usable), max(word_f1(answer, gold) for gold in usable)


def tune_threshold(
    margins_N: NDArray[np.float64], answered_N: NDArray[np.float64], is_empty_N: NDArray[np.bool_]
) -> float:
    """The threshold of the null margin with the highest mean F1; above it there is no answer.

    Args:
        margins_N: Score of no answer minus score of the best answer.
        answered_N: The F1 of the best answer.
        is_empty_N: Whether no answer is right, which scores 1.

    Returns:
        Halfway between the margins around the best cut; the one that answers most among equals.
    """
    order_N = np.argsort(margins_N, kind="stable")
    margins_N = margins_N[order_N]
    # Cut k answers the k smallest margins and says of the rest that there is no answer.
    answered = np.concatenate([[0.0], np.cumsum(answered_N[order_N])])
    empty = np.concatenate([np.cumsum(is_empty_N[order_N][::-1])[::-1], [0]])
    totals = answered + empty
    # Examples of equal margin fall on the same side.
    possible = np.concatenate([[True], margins_N[1:] > margins_N[:-1], [True]])
    best = len(totals) - 1 - int(np.where(possible, totals, -1.0)[::-1].argmax())
    if best == len(margins_N):
        return float(margins_N[-1] + 1.0)
    if best == 0:
        return float(margins_N[0] - 1.0)
    return float((margins_N[best - 1] + margins_N[best]) / 2)
