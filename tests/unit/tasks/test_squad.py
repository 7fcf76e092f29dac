"""SQuAD's rules, on cases worked by hand, and the null threshold against trying every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer.tasks.metrics import question_answering_metrics
from hftransfer.tasks.squad import best_scores, exact_match, normalise, tune_threshold, word_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's hat.", "cats hat"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("Theatre", "theatre"),
        ("“quoted”", "“quoted”"),
        ("a-b", "ab"),
    ],
)
def test_normalisation(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("the cat", "A cat!", 1.0, 1.0),
        ("black cat", "cat", 0.0, 2 * 0.5 * 1.0 / 1.5),
        ("cat cat", "cat", 0.0, 2 * 1 / 3),
        ("cat sat mat", "mat sat dog", 0.0, 2 / 3),
        ("dog", "cat", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("the", "", 1.0, 1.0),
    ],
)
def test_worked_cases(answer, gold, exact, f1):
    assert exact_match(answer, gold) == exact
    assert word_f1(answer, gold) == pytest.approx(f1)


def test_the_best_of_several_answers_counts_and_none_means_empty():
    assert best_scores("black cat", ["dog", "the black cat", "cat"]) == (1.0, 1.0)
    assert best_scores("", []) == (1.0, 1.0)
    assert best_scores("cat", []) == (0.0, 0.0)
    assert best_scores("", ["the", "cat"]) == (0.0, 0.0)


def test_scores_stand_beside_never_answering():
    scores = question_answering_metrics(["", "cat", "", "a dog sat"], [[], [], ["cat"], ["dog"]])
    assert scores == pytest.approx(
        {
            "exact_match": 1 / 4,
            "f1": (1 + 0 + 0 + 2 / 3) / 4,
            "f1_answerable": (0 + 2 / 3) / 2,
            "accuracy_unanswerable": 1 / 2,
            "share_unanswerable": 1 / 2,
        }
    )
    assert np.isnan(question_answering_metrics(["cat"], [["cat"]])["accuracy_unanswerable"])


cases = st.lists(
    st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), st.sampled_from([0.0, 0.4, 1.0]), st.booleans()),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=200)
@given(cases)
def test_no_cut_is_better_than_the_tuned_one(rows):
    margins, answered, empty = (np.asarray(column) for column in zip(*rows, strict=True))
    answered = np.where(empty, 0.0, answered)

    def mean_f1(threshold):
        return np.where(margins > threshold, empty, answered).mean()

    found = mean_f1(tune_threshold(margins, answered, empty))
    assert found == pytest.approx(max(map(mean_f1, [-9.0, *(margins + 0.1), *margins])))
