"""Runs that do not wait for their steps, as on a GPU: the results of runs that do."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from hftransfer import interruption
from hftransfer.errors import TrainingError
from hftransfer.training import loop
from hftransfer.training.graphs import Graphs
from hftransfer.training.updates import Update
from tests.recording import Never, run_ahead
from tests.tiny_runs import checkpoint_of, tiny_run

STEPS = 23
RECORDS = {"evaluation": {"every": 7, "metric": "accuracy"}, "checkpoint_every": 5}


@pytest.fixture
def checkpoint(checkpoints):
    return checkpoints / "bert"


def outcome(strategy, checkpoint, folder, **more):
    """What was logged, and the trained weights."""
    run = tiny_run("text_classification", strategy, checkpoint, folder, steps=STEPS, **{**RECORDS, **more})
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if name != "time"} for line in lines]
    saved = next(path for path in run.model_folder.glob("*.safetensors"))
    return numbers, load_file(saved)


def assert_same(found, expected):
    (lines, weights), (other_lines, other_weights) = found, expected
    assert [line.keys() for line in lines] == [line.keys() for line in other_lines]
    for line, other in zip(lines, other_lines, strict=True):
        assert {
            name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value for name, value in other.items()
        } == line
    for name, weight in other_weights.items():
        # Keys' biases shift all scores of a query alike, so their gradient is rounding noise, which AdamW makes large.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("strategy", ["feature_extraction", "full_fine_tuning", "gradual_unfreezing", "lora"])
def test_the_log_and_the_weights_are_those_of_a_run_that_waits(strategy, checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        # Passes of the same padding; dropout depends on it.
        run_ahead(patch, Never)
        patch.setattr(loop, "update_of_stage", lambda training, now: None)
        expected = outcome(strategy, checkpoint, tmp_path / "waits")
    made = run_ahead(monkeypatch)
    assert_same(outcome(strategy, checkpoint, tmp_path / "ahead"), expected)
    assert sum(one.replayed for one in made if isinstance(one, Update)) > STEPS // 2
    tables = [one.table is not None for one in made if isinstance(one, Graphs)]
    # Only where a head alone learns is each row one vector, such as in the first stage of gradual unfreezing.
    first = strategy in ("feature_extraction", "gradual_unfreezing")
    assert tables == [first, *[False] * (len(tables) - 1)]


@pytest.mark.parametrize("task", ["question_answering", "causal_lm", "seq2seq"])
def test_other_tasks_update_without_a_wait_as_well(task, checkpoints, language_models, tmp_path, monkeypatch):
    losses = []
    for ahead in (False, True):
        with monkeypatch.context() as patch:
            made = run_ahead(patch) if ahead else []
            patch.setattr(loop, "graphs_of_stage", lambda training, now: None)
            tiny_run(task, "full_fine_tuning", checkpoint_of(task, checkpoints, language_models), tmp_path / str(ahead))
        lines = [json.loads(line) for line in (tmp_path / str(ahead) / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert sum(one.replayed for one in made) > 0


def test_rows_that_are_looked_up_are_those_that_are_collated(checkpoint, tmp_path, monkeypatch):
    """A head's run from a table gives the weights of one that collates every batch."""
    run_ahead(monkeypatch)
    looked_up = outcome("feature_extraction", checkpoint, tmp_path / "table")
    monkeypatch.setattr("hftransfer.training.graphs.TABLE_BYTES", 0)
    assert_same(outcome("feature_extraction", checkpoint, tmp_path / "collated"), looked_up)


def test_rows_from_a_table_count_as_served(checkpoint, tmp_path, monkeypatch):
    counts = []
    for ahead in (False, True):
        with monkeypatch.context() as patch:
            if ahead:
                run_ahead(patch)
            run = tiny_run("text_classification", "feature_extraction", checkpoint, tmp_path / str(ahead), steps=STEPS)
        counts.append(run.metrics["training"]["cache_served_rows"])
    assert counts[0] == counts[1] > 0


def test_a_run_that_was_killed_goes_on_to_the_same_weights(checkpoint, tmp_path, monkeypatch):
    run_ahead(monkeypatch)
    expected = outcome("full_fine_tuning", checkpoint, tmp_path / "whole")
    real = loop.training_step

    def dying(*args, **kwargs):
        if kwargs["step"] == 13:
            raise KeyError("as good as a kill")
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "training_step", dying)
    with pytest.raises(KeyError):
        outcome("full_fine_tuning", checkpoint, tmp_path / "killed")
    monkeypatch.setattr(loop, "training_step", real)
    _, weights = outcome("full_fine_tuning", checkpoint, tmp_path / "killed", resume="auto")
    for name, weight in expected[1].items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5)


def test_an_interruption_is_seen_at_once_and_nothing_is_lost(checkpoint, tmp_path, monkeypatch):
    run_ahead(monkeypatch)
    expected = outcome("full_fine_tuning", checkpoint, tmp_path / "whole")
    real, asked, made = loop.training_step, [], []

    def asking(*args, **kwargs):
        made.append(kwargs["step"])
        if kwargs["step"] == 12:
            asked.append(True)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", asking)
        patch.setattr(interruption, "requested", lambda: bool(asked))
        with pytest.raises(interruption.Interrupted):
            outcome("full_fine_tuning", checkpoint, tmp_path / "stopped")
    assert made[-1] == 12
    _, weights = outcome("full_fine_tuning", checkpoint, tmp_path / "stopped", resume="auto")
    for name, weight in expected[1].items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_before_it_reaches_the_weights(checkpoint, tmp_path, monkeypatch):
    run_ahead(monkeypatch)
    real = loop.training_step

    def bad(accelerator, model, optimizer, objective, inputs, rows, optim, **kwargs):
        class Bad:
            weight = staticmethod(objective.weight)

            def loss(self, outputs, batch):
                return objective.loss(outputs, batch) * math.nan

        chosen = Bad() if kwargs["step"] == 12 else objective
        # Recorded passes have the loss that they were recorded with.
        graphs = kwargs.pop("graphs", None) if kwargs["step"] != 12 else kwargs.pop("graphs", None) and None
        return real(accelerator, model, optimizer, chosen, inputs, rows, optim, graphs=graphs, **kwargs)

    monkeypatch.setattr(loop, "training_step", bad)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 13 "):
        outcome("full_fine_tuning", checkpoint, tmp_path / "bad")
    monkeypatch.setattr(loop, "training_step", real)
    _, weights = outcome("full_fine_tuning", checkpoint, tmp_path / "bad", resume="auto")
    _, expected = outcome("full_fine_tuning", checkpoint, tmp_path / "good")
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5)
