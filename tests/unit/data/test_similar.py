"""Equal and nearly equal texts, against a plain computation of the Jaccard similarity."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer.data import similar

SENTENCE = "the quick brown fox jumps over the lazy dog and runs back to the river again"


def jaccard(one: str, other: str) -> float:
    sets = [{text[at : at + 5] for at in range(max(len(text) - 4, 1))} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_that_of_the_sets_of_pieces(one: str, other: str) -> None:
    # Zeros fill up short texts.
    one, other = one.replace("\0", ""), other.replace("\0", "")
    assert similar.similarity(similar.pieces(one), similar.pieces(other)) == jaccard(one, other)


def test_signatures_do_not_depend_on_the_other_texts() -> None:
    texts = ["", "a", "abcd", SENTENCE, "x" * 3000]
    alone = np.concatenate([similar.signatures([text]) for text in texts])
    assert np.array_equal(similar.signatures(texts), alone)


def test_near_texts_are_candidates_and_others_are_not() -> None:
    random = np.random.default_rng(1)
    known = [" ".join(f"word{number}" for number in random.integers(0, 5000, 20)) for _ in range(300)]
    asked = [text.replace(" word", " Word", 1) + " ." for text in known[:50]] + ["nothing like it"] * 3
    pairs = similar.candidates(*(similar.signatures([similar.plain(text) for text in part]) for part in (known, asked)))
    assert {(row, row) for row in range(50)} <= set(map(tuple, pairs.tolist()))
    assert not any(one >= 50 for one, _ in pairs.tolist())


def test_plain_texts_lose_case_signs_and_spaces() -> None:
    assert similar.plain("  Hello,\n World_! ") == "hello world"
