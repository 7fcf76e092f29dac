"""CUDA graphs on a real GPU: replayed steps give the numbers of steps that are run kernel by kernel."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from hftransfer.errors import TrainingError
from hftransfer.training import graphs, loop
from hftransfer.training.updates import Update
from tests import tiny_models
from tests.tiny_runs import checkpoint_of, tiny_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

GRAPHED = [
    *(("text_classification", strategy) for strategy in ("full_fine_tuning", "feature_extraction", "top_layers")),
    *(("text_classification", strategy) for strategy in ("lora", "gradual_unfreezing", "bitfit", "lp_ft", "ia3")),
    *((task, "full_fine_tuning") for task in ("token_classification", "question_answering")),
    ("token_classification", "top_layers"),
]
STEPS = 12
WAITING = ("t5", "bart", "mpnet", "deberta-v2")
"""Families whose classifiers wait for the GPU in a pass, or copy to it: they run on, kernel by kernel."""


@pytest.fixture(params=["no", "bf16"])
def precision(request, monkeypatch):
    """The precision of a training, which Accelerate reads once a process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", request.param)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield request.param
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def made(monkeypatch):
    """All `Graphs` that are made."""
    found, init = [], graphs.Graphs.__init__

    def noting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        found.append(self)

    monkeypatch.setattr(graphs.Graphs, "__init__", noting)
    return found


@pytest.fixture
def updates(monkeypatch):
    """All `Update`s that are made."""
    found, init = [], Update.__init__

    def noting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        found.append(self)

    monkeypatch.setattr(Update, "__init__", noting)
    return found


def weights_of(folder):
    """The file with what was trained."""
    whole = folder / "model.safetensors"
    return whole if whole.exists() else folder / "adapter_model.safetensors"


def run(task, strategy, checkpoint, folder, **more):
    """Losses and weights of a run."""
    done = tiny_run(task, strategy, checkpoint, folder, steps=STEPS, **more)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(weights_of(done.model_folder))


@pytest.mark.parametrize(("task", "strategy"), GRAPHED)
def test_replayed_steps_are_those_that_are_run(
    task, strategy, precision, checkpoints, tmp_path, made, updates, monkeypatch
):
    checkpoint = checkpoints / "bert"
    losses, weights = run(task, strategy, checkpoint, tmp_path / "replayed")
    assert sum(one.replayed for one in made) > 0
    assert not any(one._trouble for one in made)
    assert sum(one.replayed for one in updates) > STEPS // 4
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 0)
    monkeypatch.setattr(loop, "update_of_stage", lambda training, now: None)
    count = sum(one.replayed for one in made)
    plain_losses, plain_weights = run(task, strategy, checkpoint, tmp_path / "run")
    assert sum(one.replayed for one in made) == count
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    for name, weight in plain_weights.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_families_run_as_graphs_or_say_why_not(family, precision, checkpoints, tmp_path, made):
    losses, _ = run("text_classification", "full_fine_tuning", checkpoints / family, tmp_path / "run")
    assert losses
    assert all((one._trouble if family in WAITING else one.replayed > 0) for one in made)


@pytest.mark.parametrize("task", ["multiple_choice", "seq2seq", "causal_lm", "masked_lm"])
def test_other_tasks_train_on_a_gpu_without_graphs(
    task, precision, checkpoints, language_models, tmp_path, made, updates
):
    losses, _ = run(task, "full_fine_tuning", checkpoint_of(task, checkpoints, language_models), tmp_path / "run")
    assert losses
    assert not made
    assert sum(one.replayed for one in updates) > STEPS // 4


def test_they_can_be_switched_off(precision, checkpoints, tmp_path, made, updates, monkeypatch):
    monkeypatch.setenv(graphs.SWITCH, "0")
    run("text_classification", "lora", checkpoints / "bert", tmp_path / "run")
    assert not made
    assert not updates


def test_a_compiled_model_records_its_updates_alone(precision, checkpoints, tmp_path, made, updates):
    optim = {"torch_compile": True}
    losses, _ = run("text_classification", "full_fine_tuning", checkpoints / "bert", tmp_path / "compiled", optim=optim)
    assert losses
    assert not made
    assert updates[0].replayed > STEPS // 4


def test_a_step_that_is_not_finite_never_reaches_the_weights(precision, checkpoints, tmp_path, monkeypatch):
    """What learns is made infinite behind a step, as a kernel that overflows would; the step before is kept."""
    real = loop.training_step

    def overflowing(accelerator, model, *args, **kwargs):
        if kwargs["step"] == 8:
            with torch.no_grad():
                model.classifier.bias.fill_(math.inf)
        return real(accelerator, model, *args, **kwargs)

    monkeypatch.setattr(loop, "training_step", overflowing)
    with pytest.raises(TrainingError, match="at step 9 "):
        run("text_classification", "full_fine_tuning", checkpoints / "bert", tmp_path / "bad", checkpoint_every=4)


def test_a_run_that_is_resumed_gives_the_same_weights(precision, checkpoints, tmp_path, monkeypatch):
    arguments = ("text_classification", "full_fine_tuning", checkpoints / "bert")
    _, whole = run(*arguments, tmp_path / "whole", checkpoint_every=5)
    real, calls = loop.training_step, []

    def dying(*args, **kwargs):
        calls.append(kwargs["step"])
        if kwargs["step"] == 8:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "training_step", dying)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        run(*arguments, tmp_path / "resumed", checkpoint_every=5)
    monkeypatch.setattr(loop, "training_step", real)
    _, resumed = run(*arguments, tmp_path / "resumed", checkpoint_every=5, resume="auto")
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-5, rtol=1e-4)
