"""What is masked: how much, whole words, the same again for the same seed and row; and T5's spans can be put back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftransfer.tasks.masking import SPECIAL, Vocabulary, choose_tokens, corrupt_spans, mask_tokens

VOCABULARY = Vocabulary(mask=3, ordinary=np.arange(10, 1000), sentinels=np.arange(2000, 2100), end=1)
SEEDS = st.one_of(st.none(), st.integers(0, 2**63 - 1))


@given(st.integers(1, 300), SEEDS, st.integers(0, 10_000))
def test_single_tokens_are_15_percent_and_never_special(length, seed, row):
    words = np.concatenate([[SPECIAL], np.arange(length), [SPECIAL]])
    places = choose_tokens(words, seed, row)
    assert len(places) == max(1, round(0.15 * length))
    assert (words[places] != SPECIAL).all()
    assert (np.diff(places) > 0).all()
    assert np.array_equal(places, choose_tokens(words, seed, row))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=60), SEEDS)
def test_words_are_masked_whole(sizes, seed):
    words = np.concatenate([[SPECIAL], np.repeat(np.arange(len(sizes)), sizes), [SPECIAL]])
    masked = choose_tokens(words, seed, 4)
    wanted = max(1, round(0.15 * sum(sizes)))
    assert 1 <= len(masked) <= wanted
    if min(sizes) > wanted:
        assert len(masked) == wanted, "single tokens where no word fits"
        return
    found = np.bincount(words[masked], minlength=len(sizes))
    assert set(np.flatnonzero(found != sizes).tolist()) == set(np.flatnonzero(found == 0).tolist())
    rest = [size for size, count in zip(sizes, found, strict=True) if not count]
    assert all(size > wanted - len(masked) for size in rest), "no word that would still fit is left out"


def test_a_text_that_is_one_long_word_is_not_hidden_whole():
    alone = np.concatenate([[SPECIAL], np.zeros(100, np.int64), [SPECIAL]])
    assert len(choose_tokens(alone, 3, 0)) == 15
    # A link of 80 tokens among 20 words of one: it is never taken, and the 15 % are reached without it.
    beside = np.concatenate([np.zeros(80, np.int64), np.arange(1, 21)])
    drawn = [choose_tokens(beside, seed, 0) for seed in range(20)]
    assert all(len(places) == 15 and places.min() >= 80 for places in drawn)
    assert len({tuple(places.tolist()) for places in drawn}) == 20


def test_another_seed_or_row_masks_other_tokens():
    words = np.arange(200)
    first = choose_tokens(words, 1, 0)
    for seed, row in ((2, 0), (1, 1), (None, 0)):
        assert not np.array_equal(first, choose_tokens(words, seed, row))
    assert len(choose_tokens(np.asarray([SPECIAL, SPECIAL]), 1, 0)) == 0


def test_masked_tokens_become_mask_random_or_stay():
    ids, places = np.full(20_000, 500), np.arange(10_000)
    masked = mask_tokens(ids, places, VOCABULARY, 7, 0)
    assert (masked[10_000:] == 500).all()
    shares = [(masked[:10_000] == 3).mean(), (masked[:10_000] == 500).mean()]
    assert shares == pytest.approx([0.8, 0.1], abs=0.02)
    others = masked[:10_000][(masked[:10_000] != 3) & (masked[:10_000] != 500)]
    assert others.min() >= 10
    assert others.max() < 1000
    assert len(np.unique(others)) > 500


@given(st.integers(2, 400), SEEDS, st.integers(0, 10_000))
def test_spans_can_be_put_back(length, seed, row):
    ids = np.arange(10, 10 + length)
    inputs, target = corrupt_spans(ids, VOCABULARY, seed, row)
    assert inputs[-1] == target[-1] == VOCABULARY.end
    spans, current = {}, -1
    for token in target[:-1].tolist():
        if token >= 2000:
            current = token
            spans[current] = []
        else:
            spans[current].append(token)
    assert list(spans) == list(range(2000, 2000 + len(spans)))
    assert spans.pop(max(spans)) == []
    assert all(spans.values())
    restored = [part for token in inputs[:-1].tolist() for part in spans.get(token, [token])]
    assert restored == ids.tolist()
    assert sum(map(len, spans.values())) == min(max(1, round(0.15 * length)), length - 1)
    again = corrupt_spans(ids, VOCABULARY, seed, row)
    assert all(np.array_equal(old, new) for old, new in zip((inputs, target), again, strict=True))


def test_a_text_of_one_token_keeps_it():
    inputs, target = corrupt_spans(np.asarray([50]), VOCABULARY, 1, 0)
    assert (inputs.tolist(), target.tolist()) == ([50, 1], [2000, 1])
