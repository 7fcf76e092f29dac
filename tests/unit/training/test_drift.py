"""CKA against the paper's formula in plain numpy, and what a run says of its drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from transformers import AutoModelForMultipleChoice

from hftransfer.training.drift import compare_states, linear_cka, mean_cosine, real_tokens, states_of
from hftransfer.training.drift_verdict import of_drift
from hftransfer.verdicts import read_verdicts
from tests.tiny_models import tiny_model
from tests.tiny_runs import tiny_run


def cka_of_the_paper(x, y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels and the centring matrix (arXiv:1905.00414, 3.1)."""
    count = len(x)
    centring = np.eye(count) - np.ones((count, count)) / count
    kernels = [states @ states.T for states in (x, y)]
    hsic = [np.trace(first @ centring @ second @ centring) for first in kernels for second in kernels]
    return hsic[1] / np.sqrt(hsic[0] * hsic[3])


def states(seed, count=12, width=5):
    return np.random.default_rng(seed).normal(size=(count, width))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 8), scale=st.floats(1e-3, 1e3))
def test_cka_is_the_papers_and_blind_to_rotation_scale_and_shift(seed, width, scale):
    x, y = states(seed), states(seed + 1, width=width)
    found = linear_cka(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(cka_of_the_paper(x, y), rel=1e-9)
    assert 0 <= found <= 1 + 1e-12
    turned = scale * y @ ortho_group.rvs(width, random_state=seed) + 3.0
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(turned)) == pytest.approx(found, rel=1e-6)
    assert linear_cka(torch.from_numpy(y), torch.from_numpy(turned)) == pytest.approx(1, rel=1e-6)


def test_cka_and_cosine_of_states_that_did_not_change_are_one():
    same = torch.from_numpy(states(0)).float()
    assert linear_cka(same, same) == pytest.approx(1)
    assert mean_cosine(same, same) == pytest.approx(1)
    assert mean_cosine(same, -same) == pytest.approx(-1)


def test_constant_states_are_told_not_scored():
    constant = {0: torch.ones(4, 3)}
    verdict = of_drift(compare_states(constant, constant))
    assert "could not be compared" in verdict.words[0]
    assert verdict.charts[0].lines[0].points == [(0.0, None)]


@pytest.mark.parametrize(("task", "strategy"), [("text_classification", "lora"), ("seq2seq", "full_fine_tuning")])
def test_a_run_that_moves_the_backbone_says_how_far(task, strategy, checkpoints, language_models, tmp_path):
    checkpoint = checkpoints / "bert" if task == "text_classification" else language_models / "t5/AutoModelForSeq2SeqLM"
    run = tiny_run(task, strategy, checkpoint, tmp_path / "run")
    (verdict,) = read_verdicts(run.folder)
    assert verdict.key == "forgetting"
    cka = [float(row[1]) for row in verdict.tables[0].rows]
    assert len(cka) == (4 if task == "text_classification" else 7)
    assert min(cka) < 0.999
    if strategy == "lora":
        assert cka[0] == 1.0, "the embeddings do not learn"
    assert "Drift by depth" in run.report_file.read_text()


def test_a_run_of_a_head_alone_says_nothing(checkpoints, tmp_path):
    run = tiny_run("text_classification", "feature_extraction", checkpoints / "bert", tmp_path / "run")
    assert read_verdicts(run.folder) == []


def test_padding_is_no_token_of_the_sample():
    mask_BT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    labels_BU = torch.tensor([[5, 6, -100, -100], [7, -100, -100, -100]])
    read_BU = torch.full((2, 4), 3)
    pair = {"attention_mask": mask_BT, "decoder_input_ids": read_BU, "labels": labels_BU}
    assert real_tokens(pair, of_decoder=False).sum() == 4
    assert real_tokens(pair, of_decoder=True).tolist() == (labels_BU != -100).tolist()
    assert real_tokens({**pair, "decoder_attention_mask": read_BU > 0}, of_decoder=True).all()
    # Without outputs there is the start token alone; a classifier's decoder reads what its encoder reads.
    assert real_tokens({**pair, "labels": None, "decoder_input_ids": read_BU[:, :1]}, of_decoder=True) is None
    assert real_tokens({"attention_mask": mask_BT, "labels": torch.zeros(2)}, of_decoder=True).sum() == 4
    assert real_tokens({"attention_mask": mask_BT[None]}, of_decoder=False).shape == (2, 4)


def test_all_choices_are_read_without_their_padding():
    model = tiny_model(AutoModelForMultipleChoice, "bert")
    mask_1ST = torch.tensor([[[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]])
    batch = {"input_ids": 20 + torch.arange(18).reshape(1, 3, 6), "attention_mask": mask_1ST}
    found = states_of(model, batch, lambda: model(**batch))
    assert {len(states_ND) for states_ND in found.values()} == {9}
