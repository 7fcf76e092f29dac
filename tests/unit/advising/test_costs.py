"""What candidates cost: as many steps, rows and evaluations as their training would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hftransfer import Recipe
from hftransfer.advise.candidates import Candidate
from hftransfer.advise.cost import Cost, Rates, Setting, Texts
from hftransfer.advising import costs, probing_recipe
from hftransfer.finetuning import prepare_all
from tests.tiny_models import WORDS

FULL = Candidate("full", {"type": "full_fine_tuning"}, "full_fine_tuning")
HEAD = Candidate("head", {"type": "feature_extraction"}, "feature_extraction")
PAIRS = Candidate("pairs", {"type": "contrastive", "pairs": 3}, "contrastive")


def rows(count: int) -> list[dict[str, str]]:
    words = len(WORDS)
    return [{"text": f"{WORDS[at % words]} {WORDS[at * 3 % words]}", "label": "ab"[at % 2]} for at in range(count)]


def asked(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, count: int, **settings: Any
) -> dict[str, tuple[Setting, Texts, Cost]]:
    """How the work of each candidate is put to the cost model, and what it says; nothing is measured."""
    found: list[tuple[Setting, Texts, Cost]] = []
    estimate = costs.estimate

    def noted(shape: Any, plans: Any, train: Texts, validation: Texts, setting: Setting, rates: Any) -> Cost:
        found.append((setting, train, estimate(shape, plans, train, validation, setting, rates)))
        return found[-1][2]

    monkeypatch.setattr(costs, "measure_rates", lambda *args, **options: Rates(1e9, 1e9, 1e9))
    monkeypatch.setattr(costs, "estimate", noted)
    recipe = probing_recipe(Recipe(checkpoint=str(checkpoints / "bert"), **settings))
    candidates = [HEAD, FULL, PAIRS]
    costs.costs_of(prepare_all(recipe, train=Dataset.from_list(rows(count)), validation=rows(16)), candidates)
    return dict(zip([one.name for one in candidates], found, strict=True))


def test_few_examples_are_evaluated_no_more_often_than_many(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(checkpoints, monkeypatch, 40)
    setting, _, cost = found["full"]
    assert (setting.epochs, setting.evaluations) == (60, 5)
    assert cost.evaluating_seconds > 0
    assert found["head"][0].evaluations == 10, "its own, not those of the probing recipe"
    given = asked(checkpoints, monkeypatch, 40, evaluation={"every": 30})
    assert given["full"][0].evaluations == 10


def test_pairs_make_many_texts_of_an_example(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, _, cost = asked(checkpoints, monkeypatch, 40)["pairs"]
    assert (setting.epochs, setting.evaluations) == (6, 1)
    assert cost.cache_bytes == 0


def test_steps_that_were_set_are_those_that_cost(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optim = {"max_steps": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    found = asked(checkpoints, monkeypatch, 200, optim=optim)
    for name in ("head", "full", "pairs"):
        setting, train, _ = found[name]
        assert setting.epochs * train.count == 3 * 8 * 2
        assert setting.evaluations == 1


def test_a_stream_has_more_rows_than_its_first_chunk(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = asked(checkpoints, monkeypatch, 400, data={"streaming": 50})["full"]
    whole = asked(checkpoints, monkeypatch, 400)["full"]
    assert streamed[1].count == whole[1].count == 400
    assert streamed[0] == whole[0]
    assert streamed[2].seconds == pytest.approx(whole[2].seconds, rel=0.1)


@pytest.mark.usefixtures("bf16")
def test_the_cache_has_the_bytes_of_its_own_dtype(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = asked(checkpoints, monkeypatch, 40)["head"]
    exact = asked(checkpoints, monkeypatch, 40, cache={"dtype": "fp32"})["head"]
    assert usual[0].cache_bytes == 2
    assert exact[2].cache_bytes == 2 * usual[2].cache_bytes > 0
