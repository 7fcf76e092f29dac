"""log.jsonl: means since the last record, valid JSON, and no record twice after a resume."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from hftransfer.recipe import Recipe
from hftransfer.training.trackers import RunLog

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)


def a_log(folder, accelerator=ALONE, **settings):
    return RunLog(accelerator, Recipe(checkpoint="x", **settings), folder, 5)


def records(folder):
    def refuse(name):
        raise ValueError(name)

    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_record_is_the_mean_since_the_last_and_the_last_step_is_written(tmp_path):
    with a_log(tmp_path) as log:
        for step in range(1, 6):
            log.add_loss(float(step))
            log.step(step, step / 5, 0.1, "all", due=step % 2 == 0)
    assert [(record["step"], record["loss"]) for record in records(tmp_path)] == [(2, 1.5), (4, 3.5), (5, 5.0)]


def test_an_undefined_score_is_null(tmp_path):
    with a_log(tmp_path) as log:
        log.evaluation(3, 0.5, {"roc_auc": float("nan"), "accuracy": 0.5}, "accuracy", True)
    (record,) = records(tmp_path)
    assert record["validation_roc_auc"] is None
    assert record["validation_accuracy"] == 0.5


def test_a_resumed_run_drops_what_it_does_again(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"step": 4, "validation_mse": 1}\n{"step": 6}\n{"st')
    with a_log(tmp_path) as log:
        log.rewind(4)
        log.evaluation(6, 1.0, {"mse": 2.0}, "mse", False)
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 4, 6]


def test_only_the_main_process_writes(tmp_path):
    with a_log(tmp_path, SimpleNamespace(is_main_process=False, num_processes=1)) as log:
        log.evaluation(1, 1.0, {"mse": 2.0}, "mse", False)
    assert not (tmp_path / "log.jsonl").exists()


def test_trackers_get_plain_values_and_are_closed_after_an_error(tmp_path):
    seen = {"records": []}
    accelerator = SimpleNamespace(
        is_main_process=True,
        num_processes=1,
        init_trackers=lambda name, config: seen.update(config=config),
        log=lambda numbers, step: seen["records"].append((step, numbers)),
        end_training=lambda: seen.update(ended=True),
    )

    def fail():
        with a_log(tmp_path, accelerator, trackers=["tensorboard"]) as log:
            log.add_loss(1.0)
            log.step(5, 1.0, 0.1, "all", due=True)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen["ended"]
    assert seen["config"]["optim.lr_scheduler_type"] == "linear"
    assert all(isinstance(value, int | float | str | bool) for value in seen["config"].values())
    assert seen["records"] == [(5, {"step": 5, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.1})]
