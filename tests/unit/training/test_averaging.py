"""The moving average against its formula, and a greedy soup that is never worse than its best ingredient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer.training.averaging import AVERAGED_SHARE, MOST_INGREDIENTS, Kept, greedy_soup
from hftransfer.training.state import Progress
from tests.tiny_runs import tiny_run


class StandIn(SimpleNamespace):
    """What is read of a training; unlike a plain namespace it can be referred to weakly."""


def a_training(keep, total_steps=100, metric="accuracy"):
    model = torch.nn.Linear(2, 1, bias=False).double()
    return StandIn(
        model=model,
        learned_names=("weight",),
        total_steps=total_steps,
        metric=metric,
        progress=Progress(),
        recipe=SimpleNamespace(evaluation=SimpleNamespace(keep=keep)),
    )


def test_the_average_is_a_mean_at_first_and_exponential_from_a_window_on():
    training = a_training("ema")
    kept, expected = Kept(training), None
    window = AVERAGED_SHARE * training.total_steps
    for step in range(1, 101):
        value = torch.randn(1, 2, dtype=torch.float64)
        with torch.no_grad():
            training.model.weight.copy_(value)
        kept.after_step(step)
        expected = value if expected is None else expected + (value - expected) / min(step, window)
        torch.testing.assert_close(kept.weights["weight"], expected)
        if step == 5:
            first = kept.weights["weight"].clone()
    assert not torch.equal(first, kept.weights["weight"])


def test_an_evaluation_sees_the_average_and_leaves_the_weights():
    training = a_training("ema")
    kept = Kept(training)
    for step in (1, 2):
        with torch.no_grad():
            training.model.weight.fill_(float(step))
        kept.after_step(step)
    with kept.in_place():
        assert training.model.weight.tolist() == [[1.5, 1.5]]
    assert training.model.weight.tolist() == [[2.0, 2.0]]


def test_what_a_checkpoint_holds_is_loaded_again():
    training = a_training("soup")
    kept = Kept(training)
    for step, value in ((3, 0.5), (6, 0.7)):
        training.progress.step = step
        kept.after_evaluation(value, True)
    again = Kept(training)
    again.load(kept.stored(keep=True))
    assert {step: part["weight"].tolist() for step, part in again.ingredients.items()} == {
        step: part["weight"].tolist() for step, part in kept.ingredients.items()
    }


def test_a_soup_has_few_ingredients_the_best_ones():
    training = a_training("soup")
    kept = Kept(training)
    for step in range(MOST_INGREDIENTS + 3):
        training.progress.step = step
        kept.after_evaluation(float("nan") if step == 5 else step / 100, True)
    assert sorted(kept.ingredients) == [2, 3, 4, *range(6, MOST_INGREDIENTS + 3)]


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    centre=st.floats(-5, 5),
    metric=st.sampled_from(["accuracy", "token_loss"]),
)
def test_a_soup_is_never_worse_than_its_best_ingredient(values, centre, metric):
    sign = 1 if metric == "token_loss" else -1

    def score(weights):
        return sign * abs(float(weights["w"]) - centre)

    weights = [{"w": torch.tensor(value, dtype=torch.float64)} for value in values]
    ordered = sorted(range(len(values)), key=lambda at: sign * score(weights[at]))
    soup, best, taken = greedy_soup([(at, weights[at]) for at in ordered], score, metric)
    assert sign * best <= min(sign * score(one) for one in weights) + 1e-12
    assert taken[0] == ordered[0]
    torch.testing.assert_close(soup["w"], torch.tensor([values[at] for at in taken], dtype=torch.float64).mean())
    assert best == score(soup)


@pytest.mark.parametrize("keep", ["ema", "soup"])
@pytest.mark.parametrize("strategy", ["full_fine_tuning", "gradual_unfreezing", "feature_extraction"])
def test_a_run_leaves_averaged_weights_behind(keep, strategy, checkpoints, tmp_path):
    run = tiny_run(
        "text_classification",
        strategy,
        checkpoints / "bert",
        tmp_path / "run",
        evaluation={"keep": keep, "every": 1, "metric": "accuracy"},
    )
    training = run.metrics["training"]
    assert training["kept"] == keep
    if keep == "soup":
        scores = {one["step"]: one["validation_accuracy"] for one in run.log if "validation_accuracy" in one}
        assert set(training["kept_steps"]) <= set(scores)
        assert run.metrics["validation"]["accuracy"] >= max(scores.values()) - 1e-9
    else:
        assert training["averaging_window"] == 1.0
    assert {"soup": "greedy soup", "ema": "moving average"}[keep] in run.report_file.read_text()
