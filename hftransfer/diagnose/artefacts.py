"""Words that go with a label: counts, z-statistics and exact tests with Holm's correction.

A model that knows the label from one word need not read the rest. Gardner et al. (2021, "Competency problems",
arXiv:2104.08646) call any word whose presence alone tells about the label an artefact, and measure it by a
z-statistic. Whether the word is the task itself ("dull" in a film review) or an accident of the collection is for
people to say.

Shape legend: N texts, C classes, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from hftransfer.report.statistics import holm

TOKEN = r"\w+|[^\w\s]"
"""A word, or a sign."""
MIN_TEXTS = 5
"""Rarer words are not looked at."""
MOST_WORDS = 20_000
PURE, COVERED = 0.9, 0.05
"""A word gives a class away if this share of its texts are of the class, for certain, and so many of the class have
it."""


@dataclass(frozen=True)
class Association:
    """A word and the class that it goes with most.

    Attributes:
        word: In lower case.
        label: The class.
        texts: How many texts have the word.
        share: The share of them that are of the class.
        expected: The share of the class in all texts.
        covered: The share of the class's texts that have the word.
        z: The statistic of Gardner et al. (2021), equation 3, with the class's own share in place of one half.
        p_value: Fisher's exact test, one-sided, after Holm's correction over all words and classes.
        purity: Lower 95 % bound of `share` (Clopper and Pearson).
    """

    word: str
    label: str
    texts: int
    share: float
    expected: float
    covered: float
    z: float
    p_value: float
    purity: float

    @property
    def gives_away(self) -> bool:
        """Whether the word nearly decides the class, in a part of the data that matters."""
        return self.purity >= PURE and self.covered >= COVERED


def word_matrix(texts: Sequence[str], min_texts: int = MIN_TEXTS) -> tuple[sparse.csr_matrix, list[str]]:
    """Which text has which word, (N, W) of 0 and 1, and the words; the most frequent ones where there are many."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        binary=True, token_pattern=TOKEN, min_df=min(min_texts, len(texts)), max_features=MOST_WORDS, dtype=np.int64
    )
    try:
        matrix_NW = vectorizer.fit_transform(texts)
    except ValueError:
        # No word is in that many texts.
        return sparse.csr_matrix((len(texts), 0), dtype=np.int64), []
    return matrix_NW.tocsr(), vectorizer.get_feature_names_out().tolist()


def associations(
    texts: Sequence[str], labels_N: NDArray[np.int64], names: Sequence[str], alpha: float = 0.05
) -> list[Association]:
    """Words that go with a class beyond chance, those that matter most first.

    Under the null hypothesis that a word is spread over the texts without regard to labels, the number of its texts
    in a class is hypergeometric; Holm's correction makes the chance of any false one at most alpha.

    Args:
        texts: The texts; of pairs both as one.
        labels_N: The class of each.
        names: Of the classes.
        alpha: The chance of one or more false associations.
    """
    matrix_NW, words = word_matrix(texts)
    if not words:
        return []
    one_hot_NC = np.eye(len(names), dtype=np.int64)[labels_N]
    together_WC, count_W, sizes_C = matrix_NW.T @ one_hot_NC, np.asarray(matrix_NW.sum(0)).ravel(), one_hot_NC.sum(0)
    total = len(texts)
    raw_WC = stats.hypergeom.sf(together_WC - 1, total, sizes_C[None, :], count_W[:, None])
    adjusted_WC = np.asarray(holm(raw_WC.ravel().tolist())).reshape(raw_WC.shape)
    expected_C = sizes_C / total
    with np.errstate(all="ignore"):
        z_WC = (together_WC / count_W[:, None] - expected_C) / np.sqrt(expected_C * (1 - expected_C) / count_W[:, None])
    found = []
    for word, label in np.argwhere(adjusted_WC <= alpha).tolist():
        both, count = int(together_WC[word, label]), int(count_W[word])
        found.append(
            Association(
                words[word],
                names[label],
                count,
                both / count,
                float(expected_C[label]),
                both / int(sizes_C[label]),
                float(z_WC[word, label]),
                float(adjusted_WC[word, label]),
                float(stats.beta.ppf(0.05, both, count - both + 1)),
            )
        )
    return sorted(found, key=lambda one: (not one.gives_away, -one.z))
