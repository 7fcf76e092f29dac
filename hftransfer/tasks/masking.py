"""What a masked language model has to guess, drawn from (seed, row) alone: single tokens, whole words, or spans.

Only raw words of the counter-based Philox generator are used: NumPy promises that these never change.

Shape legend: T tokens of one row, M of them masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

MASKED_SHARE = 0.15
"""Of a row's tokens, as in BERT and T5."""
REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.8, 0.1
MEAN_SPAN = 3.0
"""Tokens, as in T5 (arXiv:1910.10683, section 3.3.4)."""
EVALUATION_SEED = 0
"""Evaluation masks the same tokens of a row whenever it is repeated, whatever the recipe's seed."""
SPECIAL = -1
"""Word number of the tokens that are never masked."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer.

    Attributes:
        mask: Id of the mask token.
        ordinary: Ids that a token may be replaced by at random.
        sentinels: Ids of the tokens that stand for spans, in order of use.
        end: Id of the end-of-text token.
    """

    mask: int
    ordinary: Ids
    sentinels: Ids
    end: int


def raw_words(seed: int | None, row: int, stream: int, count: int) -> NDArray[np.uint64]:
    """Random words that follow from the seed (None in evaluation), the row and the stream."""
    key = [EVALUATION_SEED, row, stream] if seed is None else [1, seed, row, stream]
    return np.asarray(np.random.Philox(np.random.SeedSequence(key)).random_raw(count), dtype=np.uint64)


def choose_tokens(words_T: Ids, seed: int | None, row: int) -> Ids:
    """The places to mask: words in random order, as far as they fit into 15 % of the tokens, of which one is the least.

    A word that is too long for what is left of these is passed over, as in BERT's own whole-word masking. Where none
    fits, such as in a text that is a single word, single tokens are taken: the share holds, and there is something left
    to guess from.

    Args:
        words_T: The number of each token's word, `SPECIAL` for those that are never masked; a number for each token
            masks single tokens.
        seed: The step's seed.
        row: The row.

    Returns:
        The places, (M,), ascending.
    """
    ordinary = np.flatnonzero(words_T != SPECIAL)
    if not len(ordinary):
        return ordinary
    numbers, of_token, sizes = np.unique(words_T[ordinary], return_inverse=True, return_counts=True)
    order = np.argsort(raw_words(seed, row, 0, len(numbers)), kind="stable")
    left = max(1, round(MASKED_SHARE * len(ordinary)))
    taken = []
    for word, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= left:
            taken.append(word)
            left -= size
        if not left:
            break
    if not taken:
        return choose_tokens(single_tokens(words_T), seed, row)
    return ordinary[np.isin(of_token, taken)]


def single_tokens(words_T: Ids) -> Ids:
    """The same tokens as words of their own, so that each is masked alone."""
    return np.where(words_T == SPECIAL, SPECIAL, np.arange(len(words_T)))


def mask_tokens(ids_T: Ids, places_M: Ids, vocabulary: Vocabulary, seed: int | None, row: int) -> Ids:
    """The row with its masked places changed: 80 % to the mask token, 10 % to random tokens, 10 % not at all."""
    masked_T = ids_T.copy()
    draws_M = raw_words(seed, row, 1, len(places_M)) / 2.0**64
    random_M = vocabulary.ordinary[raw_words(seed, row, 2, len(places_M)) % np.uint64(len(vocabulary.ordinary))]
    masked_T[places_M] = np.where(
        draws_M < REPLACED_BY_MASK,
        vocabulary.mask,
        np.where(draws_M < REPLACED_BY_MASK + REPLACED_AT_RANDOM, random_M, ids_T[places_M]),
    )
    return masked_T


def corrupt_spans(ids_T: Ids, vocabulary: Vocabulary, seed: int | None, row: int) -> tuple[Ids, Ids]:
    """T5's span corruption: spans of 3 tokens on average, 15 % of all, replaced by one sentinel each.

    Args:
        ids_T: The tokens without the end of the text.
        vocabulary: The sentinels and the end.
        seed: The step's seed.
        row: The row.

    Returns:
        The text with sentinels for spans; and each sentinel with its span, and one more at the end.
    """
    length = len(ids_T)
    if length < 2:
        # Nothing would be left to guess from.
        return np.append(ids_T, vocabulary.end), np.asarray([vocabulary.sentinels[0], vocabulary.end])
    noise = min(max(1, round(MASKED_SHARE * length)), length - 1)
    spans = min(max(1, round(noise / MEAN_SPAN)), noise, length - noise, len(vocabulary.sentinels) - 1)
    lost = _random_parts(noise, spans, seed, row, 3)
    kept = _random_parts(length - noise, spans, seed, row, 4)
    inputs: list[int] = []
    target: list[int] = []
    at = 0
    for sentinel, keep, lose in zip(vocabulary.sentinels.tolist(), kept.tolist(), lost.tolist(), strict=False):
        inputs += [*ids_T[at : at + keep].tolist(), sentinel]
        target += [sentinel, *ids_T[at + keep : at + keep + lose].tolist()]
        at += keep + lose
    target += [int(vocabulary.sentinels[spans]), vocabulary.end]
    return np.asarray([*inputs, vocabulary.end]), np.asarray(target)


def _random_parts(total: int, parts: int, seed: int | None, row: int, stream: int) -> Ids:
    """A random way to write a number as a sum of this many positive ones."""
    cuts = np.sort(np.argsort(raw_words(seed, row, stream, total - 1), kind="stable")[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
