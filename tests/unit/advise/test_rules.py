from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from hftransfer.advise import rules
from hftransfer.advise.candidates import Candidate, candidates
from hftransfer.advise.fitted import KNOWLEDGE
from hftransfer.advise.rules import Knowledge, Prediction, Situation, Weights
from hftransfer.recipe import Recipe


def situation(train_examples=300, chance=0.5, head=0.7, best_layer=0.75, slope=0.02):
    return Situation(train_examples, chance, head, best_layer, slope)


def candidate(type="lora"):
    return Candidate(type, {"type": type}, type)


def known(**constants):
    weights = {name: Weights((constant, 0, 0, 0, 0), 0.5, 9) for name, constant in constants.items()}
    return Knowledge(weights, (45, 1800), "")


def test_weights_are_one_ridge_regression_of_common_and_own_features():
    generator = np.random.default_rng(0)
    seen = [
        situation(int(generator.integers(30, 3000)), 0.3, *generator.uniform(0.4, 0.9, 2), generator.uniform(0, 0.1))
        for _ in range(40)
    ]
    kinds = ["lora", "lp_ft"] * 20
    scores = generator.uniform(0.3, 0.95, 40)
    found = rules.fit(seen, kinds, list(scores))
    features = np.stack([one.features() for one in seen])
    own = [features * (np.asarray(kinds) == kind)[:, None] for kind in ("lora", "lp_ft")]
    slopes = [rules.CONSTANT_PENALTY] + [rules.COMMON_PENALTY] * 4
    own_slopes = [rules.CONSTANT_PENALTY] + [rules.OWN_PENALTY] * 4
    scale = np.sqrt([*slopes, *own_slopes, *own_slopes])
    target = [rules.logit(score) - rules.logit(one.head) for one, score in zip(seen, scores, strict=True)]
    oracle = Ridge(alpha=1.0, fit_intercept=False).fit(np.concatenate([features, *own], axis=1) / scale, target)
    common, lora, lp_ft = (oracle.coef_ / scale).reshape(3, 5)
    np.testing.assert_allclose(found["lora"], common + lora)
    np.testing.assert_allclose(found["lp_ft"], common + lp_ft)


def test_a_prediction_moves_the_heads_score_by_its_weights():
    found = rules.predict(situation(head=0.7), candidate(), known(lora=1.0))
    assert found.score == pytest.approx(rules.expit(rules.logit(0.7) + 1.0))
    assert found.low < found.score < found.high
    assert rules.predict(situation(head=0.7), candidate(), known(lora=0.0)).score == pytest.approx(0.7)


def test_a_kind_without_trainings_is_not_predicted_nor_chosen():
    strange = candidate("contrastive")
    assert rules.predict(situation(), strange, known(lora=0.0)).score is None
    assert rules.choose([Prediction(strange, None), Prediction(candidate(), 0.4, 0.3, 0.5)]).candidate.type == "lora"


def test_the_cheaper_of_two_equals_is_chosen():
    cheap, dear = candidate("feature_extraction"), candidate("full_fine_tuning")
    near = [Prediction(cheap, 0.8), Prediction(dear, 0.8 + rules.MARGIN / 2)]
    far = [Prediction(cheap, 0.8), Prediction(dear, 0.8 + rules.MARGIN * 2)]
    assert rules.choose(near).candidate is cheap
    assert rules.choose(far).candidate is dear


@pytest.mark.parametrize(
    ("examples", "foreign", "type"),
    [
        (50, False, "feature_extraction"),
        (999, False, "feature_extraction"),
        (1_000, False, "top_layers"),
        (10_000, False, "full_fine_tuning"),
        (50, True, "full_fine_tuning"),
    ],
)
def test_the_tutorials_table(examples, foreign, type):
    assert rules.tutorial(examples, foreign=foreign)[0] == type


def test_what_would_change_its_mind():
    few, many = candidate("feature_extraction"), candidate("full_fine_tuning")
    found = rules.change_of_mind(
        situation(), 0.05, lambda seen: many if seen.train_examples > 1000 or seen.head < 0.65 else few, few
    )
    assert len(found) == 2
    assert "four times" in found[0]
    assert "full_fine_tuning" in found[0]
    assert "worse" in found[1]
    assert rules.change_of_mind(situation(), 0.05, lambda seen: few, few) == []


@settings(deadline=None)
@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1), st.floats(0.1, 20))
def test_predictions_are_scores_whatever_was_measured(examples, chance, head, best, slope, factor):
    seen = Situation(examples, chance, head, best, slope)
    for one in (seen, seen.at(max(1, round(examples * factor)))):
        for option in candidates(6, examples):
            found = rules.predict(one, option, KNOWLEDGE)
            if found.score is not None:
                assert 0 <= found.low <= found.score <= found.high <= 1


@pytest.mark.parametrize(
    ("examples", "classes", "offered"), [(16, 2, True), (128, 2, True), (129, 2, False), (129, 3, True), (16, 0, False)]
)
def test_pairs_are_for_a_handful_of_examples_of_each_class(examples, classes, offered):
    types = [one.type for one in candidates(6, examples, classes)]
    assert ("contrastive" in types) == offered
    assert "contrastive" in KNOWLEDGE.kinds


@pytest.mark.parametrize("blocks", [1, 2, 6, 12, 24])
@pytest.mark.parametrize("examples", [20, 500, 5000])
def test_candidates_are_recipes_with_names_of_their_own(blocks, examples):
    found = candidates(blocks, examples)
    assert len({one.name for one in found}) == len(found)
    assert {one.type for one in found} >= {"feature_extraction", "lp_ft", "gradual_unfreezing", "lora"}
    for one in found:
        Recipe(checkpoint="x", strategy=dict(one.strategy))
    assert {one.type for one in found if one.kind in KNOWLEDGE.kinds} >= {"feature_extraction", "full_fine_tuning"}
