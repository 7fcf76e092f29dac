"""Words and shortcuts: against scipy and scikit-learn, and on data with and without something planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import balanced_accuracy_score
from sklearn.naive_bayes import MultinomialNB

from hftransfer.diagnose import shortcuts as shortcut_models
from hftransfer.diagnose.artefacts import associations
from hftransfer.diagnose.leaks import find_leak
from hftransfer.diagnose.shortcuts import balanced_accuracy, cross_validated, shortcuts

VOCABULARY = [f"word{number}" for number in range(60)]


def random_texts(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(VOCABULARY, rng.integers(4, 12))) for _ in range(count)]
    return texts, rng.integers(0, 2, count)


def test_an_association_is_fishers_exact_test_with_the_papers_statistic() -> None:
    texts = ["odd one"] * 12 + ["one"] * 8 + ["odd one"] * 2 + ["one"] * 28
    labels = np.repeat([0, 1], [20, 30])
    (found,) = [one for one in associations(texts, labels, ["a", "b"]) if one.word == "odd"]
    table = [[12, 2], [8, 28]]
    raw = stats.fisher_exact(table, alternative="greater").pvalue
    # Two words, two classes: four tests.
    assert found.p_value == pytest.approx(4 * raw)
    assert found.z == pytest.approx((12 / 14 - 0.4) / np.sqrt(0.4 * 0.6 / 14))
    assert (found.label, found.texts, found.share, found.covered) == ("a", 14, 12 / 14, 12 / 20)
    # What is in every text says nothing.
    assert {one.word for one in associations(texts, labels, ["a", "b"])} == {"odd"}


def test_false_associations_are_rare() -> None:
    alarms = [bool(associations(*random_texts(150, seed), ["a", "b"])) for seed in range(60)]
    # 5 % are allowed, and exact tests of counts are timid.
    assert sum(alarms) <= 0.05 * 60


def test_a_planted_word_gives_its_class_away() -> None:
    texts, labels = random_texts(400, 0)
    members = np.flatnonzero(labels == 1)[:40]
    for row in members:
        texts[row] = f"{texts[row]} planted"
    first = associations(texts, labels, ["a", "b"])[0]
    assert (first.word, first.label, first.gives_away) == ("planted", "b", True)
    assert not any(one.gives_away for one in associations(*random_texts(400, 0), ["a", "b"]))


def test_the_shortcut_model_is_scikit_learns_naive_bayes() -> None:
    rng = np.random.default_rng(1)
    features = sparse.csr_matrix(rng.integers(0, 2, (90, 12)))
    labellings = rng.integers(0, 3, (4, 90))
    folds = np.arange(90) % 3
    found = cross_validated(features, labellings, 3, folds)
    for labels, predicted in zip(labellings, found, strict=True):
        for fold in range(3):
            held = folds == fold
            model = MultinomialNB(alpha=1.0, fit_prior=False).fit(features[~held], labels[~held])
            assert np.array_equal(predicted[held], model.predict(features[held]))
    expected = [balanced_accuracy_score(labels, predicted) for labels, predicted in zip(labellings, found, strict=True)]
    assert balanced_accuracy(labellings, found, 3) == pytest.approx(expected)


def test_a_length_that_tells_the_label_is_found_and_nothing_else() -> None:
    texts, labels = random_texts(300, 2)
    texts = [" ".join(text.split()[:4] * (1 + 2 * int(label))) for text, label in zip(texts, labels, strict=True)]
    found, _ = shortcuts([texts], labels, 2)
    by_name = {one.name: one for one in found}
    assert by_name["length alone"].score.value > 0.95
    assert by_name["length alone"].p_value <= 0.02
    assert by_name["length alone"].chance == pytest.approx(0.5, abs=0.03)
    assert by_name["first word alone"].p_value > 0.05


def test_a_half_of_a_pair_that_tells_the_label_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut_models, "PERMUTATIONS", 199)
    texts, labels = random_texts(300, 3)
    second = [f"{text} {'nobody' if label else 'somebody'}" for text, label in zip(texts, labels, strict=True)]
    found, reference = shortcuts([random_texts(300, 4)[0], second], labels, 2)
    by_name = {one.name: one for one in found}
    assert by_name["text 2 of the pair alone"].share > 0.8
    assert by_name["text 1 of the pair alone"].p_value > 0.025
    assert reference.value > 0.9


def test_copies_are_found_and_the_score_without_them_is_told() -> None:
    texts, _ = random_texts(200, 5)
    train, test = texts[:150], texts[150:]
    train[0], train[1] = test[0], f" {test[1].upper()}!"
    right = np.arange(50) < 40
    leak = find_leak("test", [train], [test], right)
    assert (leak.exact, leak.near, leak.warns) == (1, 1, True)
    assert leak.score["rows that are in train"].value == 1.0
    assert leak.score["rows that are not"].value == pytest.approx(38 / 48)
    assert leak.score["difference"].value == pytest.approx(0.8 - 38 / 48)
    assert not find_leak("test", [texts[:150]], [texts[152:]]).warns
