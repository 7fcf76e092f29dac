"""Distances with known answers: one domain has about 0, two have about 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from transformers import AutoModel, AutoTokenizer

from hftransfer.diagnose.domain_distance import embed, neighbours, proxy_distance
from hftransfer.models.load import load_model
from tests.tiny_models import WORDS

COUNT, WIDTH = 300, 8
NAMES = [f"text {number}" for number in range(COUNT)]
OTHERS = [f"other {number}" for number in range(COUNT)]


def cloud(seed: int, shift: float = 0.0, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32) + np.float32(shift)


def test_identical_texts_have_distance_0() -> None:
    found = proxy_distance(cloud(1), cloud(1), NAMES, NAMES)
    assert found.value == pytest.approx(0.0, abs=0.05)
    assert not found.distinguishable


@pytest.mark.parametrize("seed", range(4))
def test_two_samples_of_one_domain_have_a_distance_of_about_0(seed: int) -> None:
    found = proxy_distance(cloud(10 + seed), cloud(20 + seed), NAMES, OTHERS)
    assert found.value < 0.2
    assert not found.distinguishable


def test_disjoint_domains_have_a_distance_of_about_2() -> None:
    found = proxy_distance(cloud(1), cloud(2, shift=5.0), NAMES, OTHERS)
    assert found.value > 1.95
    assert found.distinguishable
    assert found.low <= found.value <= found.high <= 2.0
    assert found.baseline < 0.3


def test_the_distance_is_that_of_the_best_linear_classifier() -> None:
    """Normal clouds whose means are d apart: the best error is Phi(-d / 2)."""
    shift = 2.0 / np.sqrt(WIDTH)  # the means are 2 apart
    names = [[f"{source} {number}" for number in range(1000)] for source in "ab"]
    found = proxy_distance(cloud(3, count=1000), cloud(4, shift, 1000), *names)
    best = 0.1587
    assert found.error == pytest.approx(best, abs=0.02)
    assert found.value == pytest.approx(2 * (1 - 2 * found.error))
    assert found.low < 2 * (1 - 2 * best) < found.high


def test_copies_are_never_in_training_and_test_at_once() -> None:
    """Twenty texts fifteen times: a classifier that has seen the copy would tell the sources apart."""
    rng = np.random.default_rng(0)
    few = rng.normal(size=(40, 64)).astype(np.float32)
    first, second = np.tile(few[:20], (15, 1)), np.tile(few[20:], (15, 1))
    found = proxy_distance(first, second, [f"a{at % 20}" for at in range(300)], [f"b{at % 20}" for at in range(300)])
    assert found.value < 0.8


def test_the_larger_source_is_cut_to_the_smaller() -> None:
    assert proxy_distance(cloud(1), cloud(2)[:100], NAMES, OTHERS[:100]).texts == 100


def test_neighbours_are_those_of_scipy() -> None:
    first, second = cloud(1), cloud(2, shift=0.5)[:70]
    found = neighbours(first, second)
    own = cdist(first, first, "cosine")
    np.fill_diagonal(own, np.inf)
    own_N, nearest_M = own.min(1), cdist(second, first, "cosine").min(1)
    assert found.median == pytest.approx(np.median(nearest_M), abs=1e-5)
    assert found.own_median == pytest.approx(np.median(own_N), abs=1e-5)
    assert found.far == pytest.approx((nearest_M > np.quantile(own_N, 0.95)).mean(), abs=0.02)
    assert neighbours(first, first).far == 0.0
    assert neighbours(first + 5, -first - 5).far == 1.0


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "bart"])
def test_embeddings_are_means_of_the_last_states(family: str, checkpoints: Path) -> None:
    texts = [" ".join(WORDS[at : at + 2 + 3 * at]) for at in range(4)]
    loaded = load_model(str(checkpoints / family), "AutoModel", config_overrides={})
    found = embed(loaded, texts, 16)
    model, tokenizer = (
        AutoModel.from_pretrained(checkpoints / family).eval(),
        AutoTokenizer.from_pretrained(checkpoints / family),
    )
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    for text, vector_D in zip(texts, found, strict=True):
        with torch.no_grad():
            states_TD = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert vector_D == pytest.approx(states_TD.mean(0).numpy(), abs=1e-5)
