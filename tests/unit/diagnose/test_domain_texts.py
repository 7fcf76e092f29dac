"""Pieces, words and shifts, against scipy and formulas written out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from hftransfer.diagnose.domain_texts import cut_into_pieces, label_shift, number_shift, overlap, words_of
from tests.tiny_models import tiny_tokenizer


def test_pieces_and_unknown_ones_are_counted() -> None:
    found = cut_into_pieces(tiny_tokenizer("bert"), ["the film is good", "xylem, the phloem !", ""])
    assert (found.words, found.pieces, found.unknown) == (9, 9, 2)
    assert (found.per_word, found.unknown_share) == (1.0, pytest.approx(2 / 9))
    assert found.lengths_N.tolist() == [4, 5, 0]


def test_overlap_is_of_the_most_frequent_words() -> None:
    first = words_of(["The cat, the dog", "a cat"])
    second = words_of(["the the CAT bird bird bird"])
    assert first == Counter({"the": 2, "cat": 2, "dog": 1, "a": 1})
    found = overlap(first, second, top=2)
    assert (found.top, found.compared) == (0.5, 2)
    assert found.unseen == pytest.approx(3 / 6)
    assert overlap(first, second).compared == 3
    assert overlap(first, first).top == 1.0
    assert overlap(first, first).unseen == 0.0
    assert overlap(first, words_of(["zebra zoo"])).top == 0.0


labels = some.lists(some.sampled_from("abcd"), min_size=5, max_size=60)


@given(first=labels, second=labels)
def test_label_shift_is_total_variation_and_chi_square(first: list[str], second: list[str]) -> None:
    names = sorted({*first, *second})
    table = np.asarray([[values.count(name) for name in names] for values in (first, second)])
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    chi_square = ((table - expected) ** 2 / expected).sum()
    shares = table / table.sum(1, keepdims=True)
    found = label_shift(first, second)
    assert found.size == pytest.approx(
        max(abs(sum(shares[0][take]) - sum(shares[1][take])) for take in _subsets(names))
    )
    assert found.statistic == pytest.approx(chi_square, abs=1e-9)
    assert found.p_value == pytest.approx(stats.chi2.sf(chi_square, max(len(names) - 1, 1)), abs=1e-9)
    assert label_shift(first, first).size == 0.0


def _subsets(names: list[str]) -> list[list[int]]:
    """Total variation by its definition: the largest difference that any set of labels has."""
    return [[at for at in range(len(names)) if mask >> at & 1] for mask in range(2 ** len(names))]


def test_labels_of_every_kind() -> None:
    assert label_shift([1, 2, 2], ["1", "2", "2"]).size == 0.0
    lists = label_shift([["a"], ["a", "b"], []] * 9, [["b"], ["b"], []] * 9)
    assert lists.size == pytest.approx(0.5)
    assert "a text counts once for each of its labels" in lists.note
    assert "too rare" in label_shift(["a", "b"], ["a", "c"]).note
    assert label_shift([5.0, 1.5], [2.0, 3.0]).test == "Kolmogorov-Smirnov"


@given(
    some.lists(some.integers(0, 40), min_size=2, max_size=50), some.lists(some.integers(0, 40), min_size=2, max_size=50)
)
def test_number_shift_is_the_largest_gap_of_the_distributions(first: list[int], second: list[int]) -> None:
    points = np.unique([*first, *second])
    gaps = [abs(np.mean(np.asarray(first) <= point) - np.mean(np.asarray(second) <= point)) for point in points]
    assert number_shift(first, second).size == pytest.approx(max(gaps))
