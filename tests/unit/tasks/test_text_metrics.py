"""Scores of texts: hand-worked cases, several references, and what cannot be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from hftransfer.errors import DataError
from hftransfer.tasks.metrics import METRICS
from hftransfer.tasks.text_metrics import generation_metrics, token_metrics

TEXTS = ["the cat sat on the mat", "a dog barks at night"]
GOLDS = ["the cat sat on a mat", "a dog barks at night"]


def test_scores_are_those_of_the_libraries_as_fractions():
    found = generation_metrics(TEXTS, [[gold] for gold in GOLDS])
    assert set(found) == set(METRICS["generation"])
    assert found["bleu"] == pytest.approx(corpus_bleu(TEXTS, [GOLDS]).score / 100)
    assert found["chrf"] == pytest.approx(corpus_chrf(TEXTS, [GOLDS]).score / 100)
    # 5 of 6 words are shared (with "the" once only); 3 of 5 pairs of words; the second example is right.
    assert found["rouge1"] == pytest.approx((5 / 6 + 1) / 2)
    assert found["rouge2"] == pytest.approx((3 / 5 + 1) / 2)
    assert found["rouge_l"] == pytest.approx((5 / 6 + 1) / 2)
    assert found["exact_match"] == 0.5


def test_the_best_of_several_references_counts():
    several = [[GOLDS[0], " the  cat sat on the mat "], [GOLDS[1]]]
    found = generation_metrics(TEXTS, several)
    assert found["exact_match"] == found["rouge1"] == found["rouge2"] == found["rouge_l"] == 1.0
    assert found["bleu"] == pytest.approx(1.0)


def test_rouge_compares_stems_and_an_empty_text_scores_nothing():
    assert generation_metrics(["the dogs barked"], [["the dog barks"]])["rouge1"] == 1.0
    assert set(generation_metrics([""], [["a dog"]]).values()) == {0.0}


@pytest.mark.parametrize(("texts", "golds"), [([], []), (["a"], [[]])])
def test_nothing_to_compare_is_refused(texts, golds):
    with pytest.raises(DataError):
        generation_metrics(texts, golds)


def test_token_losses_are_averaged_over_tokens():
    found = token_metrics([np.asarray([1.0, 2.0, 3.0]), np.empty(0), np.asarray([6.0])])
    assert found == {"token_loss": 3.0, "perplexity": pytest.approx(math.exp(3.0))}
    assert token_metrics([np.asarray([800.0])])["perplexity"] == math.inf


@pytest.mark.parametrize("losses", [[], [np.empty(0)], [np.asarray([np.nan])]])
def test_losses_that_cannot_be_averaged_are_refused(losses):
    with pytest.raises(DataError):
        token_metrics(losses)
