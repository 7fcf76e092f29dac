"""How far models come that see next to nothing: the length, the first word, the signs, one half of a pair.

Every shortcut is a naive Bayes model of 0/1 features with equal priors, cross-validated, scored by balanced accuracy
(the mean recall of the classes: chance is 1 / C whatever the balance), and tested by permuting labels. Counting is all
that training is, so that hundreds of permutations are one matrix product.

Shape legend: N texts, F features, C classes, P labellings (the true one first, then permutations).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hftransfer.data.batching import random_order
from hftransfer.diagnose.artefacts import TOKEN, word_matrix
from hftransfer.report.statistics import Interval, Statistic, bootstrap, holm

FOLDS, PERMUTATIONS = 5, 399
MOST_TEXTS = 5_000
"""Of more texts a random part is looked at."""
LENGTH_BINS = 10
BLOCK_COLUMNS = 2_000
WORDS = re.compile(TOKEN)
_FOLD, _LABELS, _SUBSET = 11, 12, 13

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Shortcut:
    """What a model reaches that sees one thing alone.

    Attributes:
        name: What it sees.
        score: Its cross-validated balanced accuracy with its interval over texts.
        chance: What it would be if the labels had nothing to do with it: the mean over permutations.
        p_value: Of the permutation test, after Holm's correction over the shortcuts.
        share: How much of the way from chance to the reference the score comes.
    """

    name: str
    score: Interval
    chance: float
    p_value: float
    share: float


def shortcuts(
    columns: Sequence[Sequence[str]], labels_N: Labels, num_classes: int, *, seed: int = 0
) -> tuple[list[Shortcut], Interval]:
    """Score all shortcut models that the inputs have.

    Args:
        columns: The texts, or both texts of pairs.
        labels_N: The class of each row.
        num_classes: C.
        seed: Of folds and permutations.

    Returns:
        The shortcuts, and the reference: the same kind of model on all words of the whole input.
    """
    if len(labels_N) > MOST_TEXTS:
        rows = np.sort(random_order(len(labels_N), seed, _SUBSET)[:MOST_TEXTS])
        columns, labels_N = [[column[row] for row in rows] for column in columns], labels_N[rows]
    labellings_PN = np.stack(
        [labels_N, *(labels_N[random_order(len(labels_N), seed, _LABELS, turn)] for turn in range(PERMUTATIONS))]
    )
    folds_N = _folds(labels_N, seed)
    whole = [" ".join(row) for row in zip(*columns, strict=True)]
    predicted_N = cross_validated(word_matrix(whole)[0], labels_N[None], num_classes, folds_N)[0]
    reference = bootstrap(recall_statistic(labels_N, predicted_N, num_classes))
    found, raw = [], []
    for name, features_NF in features_of(columns).items():
        predicted_PN = cross_validated(features_NF, labellings_PN, num_classes, folds_N)
        scores_P = balanced_accuracy(labellings_PN, predicted_PN, num_classes)
        score = bootstrap(recall_statistic(labels_N, predicted_PN[0], num_classes))
        raw.append(float((scores_P >= scores_P[0] - 1e-12).mean()))
        found.append((name, score, float(scores_P[1:].mean())))
    return [
        Shortcut(name, score, chance, p_value, share_of_way(score.value, chance, reference.value))
        for (name, score, chance), p_value in zip(found, holm(raw), strict=True)
    ], reference


def share_of_way(score: float, chance: float, reference: float) -> float:
    """How much of the way from chance to a reference a score comes; 0 where the reference is no better than chance."""
    return max(0.0, (score - chance) / (reference - chance)) if reference > chance + 1e-9 else 0.0


def features_of(columns: Sequence[Sequence[str]]) -> dict[str, sparse.csr_matrix]:
    """What each shortcut sees, (N, F) of 0 and 1."""
    texts = [" ".join(row) for row in zip(*columns, strict=True)]
    tokens = [WORDS.findall(text.lower()) for text in texts]
    found = {
        "length alone": _one_hot(_binned([len(words) for words in tokens])),
        "first word alone": _one_hot([words[0] if words else "" for words in tokens]),
        "last word alone": _one_hot([words[-1] if words else "" for words in tokens]),
        "signs, digits and capitals alone": sparse.csr_matrix(np.asarray([_surface(text) for text in texts], np.int64)),
    }
    if len(columns) > 1:
        found |= {f"text {place} of the pair alone": word_matrix(column)[0] for place, column in enumerate(columns, 1)}
    return found


def cross_validated(
    features_NF: sparse.csr_matrix, labellings_PN: NDArray[np.int64], num_classes: int, folds_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The class that naive Bayes predicts for every text from the other folds, for every labelling, (P, N).

    Multinomial naive Bayes with add-one smoothing and equal priors.
    """
    labellings, count = labellings_PN.shape
    found_PN = np.empty((labellings, count), np.int64)
    block = max(1, BLOCK_COLUMNS // num_classes)
    for start in range(0, labellings, block):
        part_PN = labellings_PN[start : start + block]
        # (N, P * C): a column for every class of every labelling.
        one_hot = np.zeros((count, len(part_PN) * num_classes))
        columns_PN = part_PN + num_classes * np.arange(len(part_PN))[:, None]
        one_hot[np.arange(count)[None, :], columns_PN] = 1.0
        for fold in range(int(folds_N.max()) + 1):
            held_N = folds_N == fold
            counts = features_NF[~held_N].T @ one_hot[~held_N] + 1.0
            scores = features_NF[held_N] @ (np.log(counts) - np.log(counts.sum(0)))
            best = scores.reshape(int(held_N.sum()), len(part_PN), num_classes).argmax(-1)
            found_PN[start : start + block, held_N] = best.T
    return found_PN


def balanced_accuracy(
    labellings_PN: NDArray[np.int64], predicted_PN: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """The mean recall of the classes that occur, for every labelling, (P,)."""
    found, present = np.zeros(len(labellings_PN)), 0
    for label in range(num_classes):
        of_class_PN = labellings_PN == label
        size_P = of_class_PN.sum(1)
        if size_P[0]:
            found += (of_class_PN & (predicted_PN == label)).sum(1) / size_P
            present += 1
    return found / present


def recall_statistic(labels_N: Labels, predicted_N: NDArray[np.int64], num_classes: int) -> Statistic:
    """Balanced accuracy as a function of the examples drawn."""
    actual_NC = labels_N[:, None] == np.arange(num_classes)
    right_NC = actual_NC & (predicted_N == labels_N)[:, None]

    def of_sums(sums_RS: NDArray[np.float64]) -> NDArray[np.float64]:
        right_RC, actual_RC = np.split(sums_RS, 2, axis=1)
        recall_RC = np.divide(right_RC, actual_RC, out=np.zeros_like(right_RC), where=actual_RC > 0)
        found: NDArray[np.float64] = recall_RC.sum(1) / np.maximum((actual_RC > 0).sum(1), 1)
        return found

    return Statistic(len(labels_N), np.hstack([right_NC, actual_NC]).astype(np.float64), of_sums)


def _folds(labels_N: Labels, seed: int) -> NDArray[np.int64]:
    """The fold of every text, classes spread evenly over them."""
    order = random_order(len(labels_N), seed, _FOLD)
    folds_N = np.empty(len(labels_N), np.int64)
    folds_N[order[np.argsort(labels_N[order], kind="stable")]] = np.arange(len(labels_N)) % FOLDS
    return folds_N


def _binned(lengths: Sequence[int]) -> list[int]:
    """Lengths in bins of about equal count."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1]))
    return [int(place) for place in np.searchsorted(edges, lengths, side="right")]


def _one_hot(values: Sequence[str] | Sequence[int]) -> sparse.csr_matrix:
    distinct, codes_N = np.unique(np.asarray(values), return_inverse=True)
    count = len(codes_N)
    return sparse.csr_matrix((np.ones(count, np.int64), (np.arange(count), codes_N)), shape=(count, len(distinct)))


def _surface(text: str) -> list[bool]:
    """What is seen of a text without reading a word."""
    letters = [letter for letter in text if letter.isalpha()]
    marks = [
        any(sign in text for sign in signs)
        for signs in ("!", "?", ".", ",", ";:", "\"'`", "()[]", "#", "@", "/\\", "…")
    ]
    capitals = sum(letter.isupper() for letter in letters)
    found = [
        *marks,
        any(letter.isdigit() for letter in text),
        text[:1].isupper(),
        text[-1:] in ".!?",
        len(letters) > 3 and capitals > len(letters) / 2,
        "http" in text,
    ]
    # Absence tells as much as presence.
    return [*found, *(not one for one in found)]
