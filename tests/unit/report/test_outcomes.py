"""What examples add to the scores: the sums give the scores of the metrics, and only equal rows are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy.special import expit, softmax

from hftransfer.errors import DataError
from hftransfer.report import outcomes
from hftransfer.report.outcomes import Outcomes, align, row_hashes
from hftransfer.tasks import metrics
from hftransfer.tasks.entities import count_by_kind, entity_scores, tag_scores
from hftransfer.tasks.text_metrics import generation_metrics, text_outcomes, token_outcomes

NAMES = ("a", "b", "c")
COUNT = 60


def rows(count: int = COUNT) -> np.ndarray:
    return np.arange(count, dtype=np.uint64)


def single_label() -> tuple[Outcomes, dict[str, float]]:
    rng = np.random.default_rng(0)
    labels_N, logits_NC = rng.choice(3, COUNT, p=[0.6, 0.3, 0.1]), rng.normal(size=(COUNT, 3))
    scores = metrics.classification_metrics(labels_N, softmax(logits_NC, axis=-1), NAMES)
    return Outcomes("single_label", NAMES, rows(), {"labels": labels_N, "logits": logits_NC}), scores


def multi_label() -> tuple[Outcomes, dict[str, float]]:
    rng = np.random.default_rng(0)
    labels_NC, logits_NC = (rng.random((COUNT, 3)) < 0.3).astype(np.uint8), rng.normal(size=(COUNT, 3))
    scores = metrics.multi_label_metrics(labels_NC, expit(logits_NC), np.full(3, 0.5), NAMES)
    scores.pop("labels_skipped")
    return Outcomes("multi_label", NAMES, rows(), {"labels": labels_NC, "logits": logits_NC}), scores


def regression() -> tuple[Outcomes, dict[str, float]]:
    rng = np.random.default_rng(0)
    # Far from zero: sums of squares would lose their digits.
    targets_N = 1e4 + rng.normal(size=COUNT)
    predicted_N = targets_N + rng.normal(size=COUNT)
    arrays = {"labels": targets_N, "predictions": predicted_N}
    return Outcomes("regression", (), rows(), arrays), metrics.regression_metrics(targets_N, predicted_N)


def entities() -> tuple[Outcomes, dict[str, float]]:
    gold = [[("a", 0, 1), ("b", 2, 3)], [], [("a", 1, 2)]] * 20
    found = [[("a", 0, 1), ("a", 2, 3)], [("b", 0, 1)], [("a", 1, 2), ("a", 1, 2)]] * 20
    words_N2 = np.tile([3, 4], (COUNT, 1))
    arrays = {"counts": count_by_kind(gold, found, NAMES, entities=True), "words": words_N2}
    scores = {"word_accuracy": 0.75, **entity_scores(gold, found, NAMES)}
    return Outcomes("entities", NAMES, rows(), arrays), scores


def tags() -> tuple[Outcomes, dict[str, float]]:
    gold, found = [["a", "b"], ["a", "a"]] * 30, [["a", "a"], ["a", None]] * 30
    counts = count_by_kind(gold, found, NAMES, entities=False)
    right = [[1, 2], [1, 2]] * 30
    return Outcomes("tags", NAMES, rows(), {"counts": counts, "words": np.asarray(right)}), tag_scores(
        gold, found, NAMES
    )


def question_answering() -> tuple[Outcomes, dict[str, float]]:
    answers, golds = ["the cat", "", "dog", ""] * 15, [["cat"], [], ["a dog barks"], ["bird"]] * 15
    from hftransfer.tasks.squad import best_scores

    pairs = [best_scores(answer, gold) for answer, gold in zip(answers, golds, strict=True)]
    arrays = {
        "exact_match": np.asarray([exact for exact, _ in pairs]),
        "f1": np.asarray([f1 for _, f1 in pairs]),
        "is_empty": np.asarray([not gold for gold in golds]),
    }
    scores = metrics.question_answering_metrics(answers, golds)
    scores.pop("share_unanswerable")
    return Outcomes("question_answering", (), rows(), arrays), scores


def multiple_choice() -> tuple[Outcomes, dict[str, float]]:
    right_N = np.arange(COUNT) % 3 == 0
    return Outcomes("multiple_choice", (), rows(), {"right": right_N}), {"accuracy": 1 / 3}


def generation() -> tuple[Outcomes, dict[str, float]]:
    texts = ["the cat sat on the mat", "a dog", "red green blue one two"] * 20
    golds = [["the cat sat on a mat"], ["a dog", "one dog"], ["red green three one two"]] * 20
    return Outcomes("generation", (), rows(), text_outcomes(texts, golds)), generation_metrics(texts, golds)


def language_model() -> tuple[Outcomes, dict[str, float]]:
    losses = [np.asarray([1.0, 2.0]), np.asarray([3.0])] * 30
    arrays = token_outcomes(losses, np.arange(COUNT), COUNT)
    return Outcomes("causal_lm", (), rows(), arrays), {"token_loss": 2.0, "perplexity": float(np.exp(2.0))}


@pytest.mark.parametrize(
    "make",
    [
        single_label,
        multi_label,
        regression,
        entities,
        tags,
        question_answering,
        multiple_choice,
        generation,
        language_model,
    ],
)
def test_the_statistic_of_every_score_is_the_score(make: Any, tmp_path: Path) -> None:
    made, scores = make()
    outcomes.save({"test": made}, tmp_path)
    kept = outcomes.load(tmp_path)["test"]
    assert (kept.kind, kept.names, len(kept)) == (made.kind, made.names, COUNT)
    assert set(kept.scores()) == set(scores)
    for name, value in scores.items():
        assert kept.statistic(name).value() == pytest.approx(value, abs=1e-9, nan_ok=True), name
    found = kept.intervals(next(iter(scores)))
    for name, interval in found.items():
        assert interval.low <= interval.value + 1e-12, name
        assert interval.value - 1e-12 <= interval.high, name
    badness_N = kept.badness()
    assert badness_N is not None
    assert badness_N.shape == (COUNT,)
    right_N = kept.right()
    if right_N is not None and kept.kind != "multi_label":
        assert np.array_equal(badness_N == 0, right_N) or kept.kind in ("question_answering", "generation")


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(DataError, match=r"no intervals for 'f2'.*accuracy"):
        single_label()[0].statistic("f2")


def test_equal_rows_have_different_hashes_and_the_same_ones_again() -> None:
    data = Dataset.from_dict({"text": ["x", "x", "y"], "label": [0, 0, 1]})
    found = row_hashes(data)
    assert len(set(found.tolist())) == 3
    assert np.array_equal(found, row_hashes(data))
    assert found[2] == row_hashes(data.select([2, 0]))[0]


def test_runs_are_brought_into_one_order_or_refused() -> None:
    first = multiple_choice()[0]
    order = np.random.default_rng(0).permutation(COUNT)
    mine, other = align([first, first.select(order)], ["one", "two"])
    assert np.array_equal(mine.arrays["right"], other.arrays["right"])
    shifted = Outcomes(first.kind, (), rows() + np.uint64(1), first.arrays)
    with pytest.raises(DataError, match=r"two: other test rows than one \(59 of 60 and 60 in common\)"):
        align([first, shifted], ["one", "two"])


def test_a_folder_without_predictions_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no predictions"):
        outcomes.load(tmp_path)
    (tmp_path / outcomes.FILE).write_bytes(b"no tensors")
    with pytest.raises(DataError, match="cannot be read"):
        outcomes.load(tmp_path)
