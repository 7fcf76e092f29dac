"""Entities in tags: seqeval's reading of BIO and BIOES, exact scores, and spans of raw text."""

from __future__ import annotations

import pytest
import seqeval.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from hftransfer.errors import DataError
from hftransfer.tasks.entities import are_entity_tags, entity_scores, find_entities, tag_scores, tag_words

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("per", "loc", "x-y"))]
sequences = st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=8), min_size=1, max_size=5)


@settings(deadline=None, max_examples=300)
@given(sequences)
def test_entities_are_those_of_seqeval(rows):
    for tags in rows:
        assert find_entities(tags) == [(kind, start, end + 1) for kind, start, end in get_entities(tags)]


@settings(deadline=None, max_examples=100)
@given(sequences, st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_seqeval(rows, random):
    guessed = [[random.choice(TAGS) if random.random() < 0.4 else tag for tag in tags] for tags in rows]
    found = entity_scores([find_entities(tags) for tags in rows], [find_entities(tags) for tags in guessed])
    for name, score in (("f1", "f1_score"), ("precision", "precision_score"), ("recall", "recall_score")):
        expected = getattr(seqeval.metrics, score)(rows, guessed, zero_division=0)
        assert found[name] == pytest.approx(expected), name
    if any(find_entities(tags) for tags in [*rows, *guessed]):
        macro = seqeval.metrics.f1_score(rows, guessed, average="macro", zero_division=0)
        assert found["f1_macro"] == pytest.approx(macro)


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        (["B-a", "I-a", "O", "B-a"], [("a", 0, 2), ("a", 3, 4)]),
        (["I-a", "I-b", "B-b"], [("a", 0, 1), ("b", 1, 2), ("b", 2, 3)]),
        (["S-a", "B-a", "I-a", "E-a", "S-a"], [("a", 0, 1), ("a", 1, 4), ("a", 4, 5)]),
        (["U-a", "B-a", "L-a", "B-a"], [("a", 0, 1), ("a", 1, 3), ("a", 3, 4)]),
        (["O", "O"], []),
    ],
)
def test_worked_cases(tags, entities):
    assert find_entities(tags) == entities


def test_which_tags_mark_entities():
    assert are_entity_tags(["O", "B-a", "I-a"])
    assert are_entity_tags(["B-a", "E-b"])
    for names in (["NOUN", "VERB"], ["O"], ["O", "B-a", "X"], ["B-"], []):
        assert not are_entity_tags(names), names


def test_spans_become_tags_of_the_words_they_touch():
    starts, ends = [0, 4, 8, 12], [3, 7, 11, 15]
    assert tag_words([("x", 8, 15), ("y", 1, 3)], starts, ends, "here") == ["B-y", "O", "B-x", "I-x"]
    with pytest.raises(DataError, match=r"here: the span 5 to 9 \(z\) lies in one word with another"):
        tag_words([("y", 0, 6), ("z", 5, 9)], starts, ends, "here")


def test_a_word_without_a_prediction_is_wrong():
    scores = tag_scores([["a", "b", "b"]], [["a", None, "b"]], ["a", "b", "c"])
    assert scores == pytest.approx(
        {"word_accuracy": 2 / 3, "f1_macro": (1 + 2 / 3) / 2, "f1/a": 1.0, "f1/b": 2 / 3, "f1/c": 0.0}
    )
    with pytest.raises(DataError, match="no words"):
        tag_scores([[]], [[]])
