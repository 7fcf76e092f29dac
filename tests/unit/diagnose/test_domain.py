"""The whole diagnosis on tiny models: known answers, the rule of the forecast, the words."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from hftransfer.data.texts import Texts
from hftransfer.diagnose.domain import diagnose_domain
from hftransfer.diagnose.domain_forecast import MARGIN, Forecast, forecast
from hftransfer.diagnose.domain_verdict import verdict_of
from hftransfer.errors import DataError
from hftransfer.report.statistics import Interval
from hftransfer.run_files import plain_numbers
from tests.tiny_models import WORDS


def texts(seed: int, words: list[str] = WORDS[:25], count: int = 120, length: int = 8) -> Texts:
    draw = random.Random(seed)
    rows = [" ".join(draw.choices(words, k=draw.randint(length - 3, length + 3))) for _ in range(count)]
    return Texts("here", rows, [("good", "bad")[draw.random() < 0.5] for _ in rows], 0, count)


@pytest.fixture(scope="module")
def masked(language_models: Path) -> str:
    return str(language_models / "bert" / "AutoModelForMaskedLM")


def test_identical_texts_have_no_distance_and_no_warning(masked: str) -> None:
    same = texts(1)
    found = diagnose_domain(masked, {"training": same, "deployment": same, "reference": same}, positions=50)
    verdict = verdict_of(found)
    assert not verdict.warns
    assert len(found.pairs) == 3
    for pair in found.pairs:
        assert pair.distance.value == pytest.approx(0.0, abs=0.15)
        assert not pair.distance.distinguishable
        assert (pair.neighbours.far, pair.overlap.top, pair.overlap.unseen) == (0.0, 1.0, 0.0)
        assert (pair.length.size, pair.label and pair.label.size) == (0.0, 0.0)
    assert (found.forecast.pays, found.forecast.margin) == ("no", 0.0)
    assert verdict.words[0].startswith("Deployment text cannot be told from training text")


def test_two_samples_of_one_kind_raise_no_warning(masked: str) -> None:
    found = diagnose_domain(masked, {"training": texts(1), "deployment": texts(2)}, positions=50)
    assert not verdict_of(found).warns, verdict_of(found).words
    assert found.forecast.pays == "unknown"
    assert "no general text" in found.forecast.reason


def test_disjoint_texts_have_a_distance_of_about_2_and_warn(masked: str) -> None:
    other = texts(2, ["xylem", *WORDS[40:44]], length=24)
    moved = Texts("there", other.texts, ["good"] * len(other), 0, len(other))
    found = diagnose_domain(masked, {"training": texts(1, WORDS[:3]), "deployment": moved}, positions=50)
    verdict = verdict_of(found)
    (pair,) = found.pairs
    assert pair.distance.value > 1.6
    assert pair.distance.distinguishable
    assert pair.overlap.top == 0.0
    assert pair.overlap.unseen == 1.0
    assert found.sources["deployment"].unknown_share > 0.05
    said = " ".join(verdict.words)
    assert verdict.warns
    assert "almost separable from training text" in said
    assert "Labels are distributed differently: total variation" in said
    assert "Texts are of other lengths" in said
    assert "unknown to it" in said


def test_without_a_head_the_rest_is_measured_and_the_reason_is_told(checkpoints: Path) -> None:
    found = diagnose_domain(str(checkpoints / "bert"), {"training": texts(1), "reference": texts(2)})
    assert found.sources["training"].loss is None
    assert found.forecast.pays == "unknown"
    verdict = verdict_of(found)
    assert "cannot be foretold: the checkpoint's language-modelling loss was not measured: no pretrained" in " ".join(
        verdict.words
    )
    assert len(verdict.charts) == 1


def test_the_figures_are_plain_data_and_repeat(masked: str) -> None:
    sources = {"training": texts(1), "reference": texts(3)}
    first = json.dumps(plain_numbers(diagnose_domain(masked, sources, max_texts=60, positions=20).as_data()))
    assert first == json.dumps(plain_numbers(diagnose_domain(masked, sources, max_texts=60, positions=20).as_data()))
    assert json.loads(first)["sources"]["training"]["texts"] == 60


def test_too_little_is_refused(masked: str) -> None:
    with pytest.raises(DataError, match="fewer than two sources"):
        diagnose_domain(masked, {"training": texts(1)})
    with pytest.raises(DataError, match="here: 19 different texts are too few"):
        diagnose_domain(masked, {"training": texts(1), "reference": texts(1, count=19)})
    copies = Texts("there", ["the film", "The  film"] * 40)
    with pytest.raises(DataError, match="there: 1 different texts are too few"):
        diagnose_domain(masked, {"training": texts(1), "reference": copies})
    with pytest.raises(DataError, match="9 different texts are too few"):
        diagnose_domain(masked, {"training": texts(1), "reference": texts(2)}, max_texts=9)


def interval(value: float, error: float = 0.01) -> Interval:
    return Interval(value, value - 2 * error, value + 2 * error, error)


@pytest.mark.parametrize(
    ("domain", "general", "error", "pays"),
    [
        (3.0, 2.0, 0.01, "yes"),
        (2.0 + MARGIN / 2, 2.0, 0.001, "no"),
        (3.0, 2.0, 2.0, "no"),
        (1.5, 2.0, 0.01, "no"),
    ],
)
def test_the_rule(domain: float, general: float, error: float, pays: str) -> None:
    losses = {"deployment": interval(domain, error), "training": interval(9.0), "reference": interval(general, error)}
    found = forecast(losses, losses, "")
    assert found.pays == pays
    assert found.margin == pytest.approx(domain - general)
    assert not found.weak_head
    assert forecast(losses, {**losses, "reference": interval(6.0)}, "").weak_head


def test_a_head_that_guesses_nothing_foretells_nothing(masked: str) -> None:
    same = texts(1)
    found = diagnose_domain(masked, {"training": same, "deployment": same, "reference": same}, positions=20)
    reason = "the head guesses this text worse"
    strong = replace(found, forecast=Forecast("yes", 0.3, 0.1, 0.5, reason))
    assert verdict_of(strong).warns
    assert any(words.startswith("Domain-adaptive pretraining is likely to pay") for words in verdict_of(strong).words)
    weak = replace(found, forecast=Forecast("yes", 0.3, 0.1, 0.5, reason, weak_head=True))
    assert not verdict_of(weak).warns
    (words,) = (words for words in verdict_of(weak).words if "adaptive" in words)
    assert words.startswith("Whether domain-adaptive pretraining pays cannot be foretold")
    assert reason in words
