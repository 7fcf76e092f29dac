"""Checkpoints: a roundtrip, damage that is found, and checkpoints that belong to something else."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hftransfer.errors import TrainingError
from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features
from hftransfer.training.state import FILES, MANIFEST, Progress, TrainingState

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, scaler=None, wait_for_everyone=lambda: None)
RECIPE = Recipe(checkpoint="some/model")
FEATURES = Features(
    {"input_ids": np.arange(6, dtype=np.int32)}, np.asarray([0, 2, 6]), np.asarray([0, 1]), np.arange(2)
)


def a_state(folder, accelerator=ALONE, features=FEATURES, **changes):
    return TrainingState(folder, RECIPE.model_copy(update=changes), [features], accelerator)


def an_optimizer(steps=2):
    torch.manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer


def save(state, *steps):
    for step in steps:
        weights = {"weight": torch.full((2, 2), float(step))}
        state.save(Progress(step=step, best_score=0.5), weights, {"weight": torch.ones(2, 2)}, an_optimizer())


def test_what_is_saved_comes_back(tmp_path):
    state = a_state(tmp_path)
    progress = Progress(7, 0.25, 5, {"accuracy": 0.25, "roc_auc": float("nan")}, 1, False, 3.5)
    weights, best = {"a": torch.randn(3), "b": torch.randn(2, 2, dtype=torch.bfloat16)}, {"a": torch.zeros(3)}
    optimizer = an_optimizer()
    state.save(progress, weights, best, optimizer)
    fresh = a_state(tmp_path)
    found, found_weights, found_best = fresh.load()
    assert str(dataclasses.asdict(found)) == str(dataclasses.asdict(progress))
    assert all(torch.equal(found_weights[name], weights[name]) for name in weights)
    assert torch.equal(found_best["a"], best["a"])
    other = an_optimizer(steps=0)
    fresh.load_optimizer(other)
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(other.state_dict()["state"][index][name], value), (index, name)
    assert sorted(path.name for path in (tmp_path / "step-00000007").iterdir()) == sorted([*FILES, MANIFEST])


def test_no_checkpoint_is_no_error(tmp_path):
    assert a_state(tmp_path / "none").load() is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()], ids=["cut", "flip", "missing"])
def test_damage_is_found_and_the_older_checkpoint_taken(tmp_path, name, damage):
    state = a_state(tmp_path, keep_checkpoints=2)
    save(state, 4, 8)
    assert a_state(tmp_path).load()[0].step == 8
    damage(tmp_path / "step-00000008" / name)
    progress, weights, _ = a_state(tmp_path).load()
    assert progress.step == 4
    assert torch.equal(weights["weight"], torch.full((2, 2), 4.0))
    damage(tmp_path / "step-00000004" / name)
    with pytest.raises(TrainingError, match="no intact checkpoint") as error:
        a_state(tmp_path).load()
    assert "\n" not in str(error.value)


def test_a_manifest_that_lists_nothing_vouches_for_nothing(tmp_path):
    save(a_state(tmp_path), 4)
    (tmp_path / "step-00000004" / MANIFEST).write_text("{}")
    with pytest.raises(TrainingError, match="no intact"):
        a_state(tmp_path).load()


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"seed": 99}, "another recipe"),
        ({"features": dataclasses.replace(FEATURES, labels=np.asarray([1, 0]))}, "another data"),
        ({"accelerator": SimpleNamespace(**{**vars(ALONE), "num_processes": 2})}, "another number of processes"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(tmp_path, other, what):
    save(a_state(tmp_path), 4)
    with pytest.raises(TrainingError, match=what) as error:
        a_state(tmp_path, **other).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"checkpoint_every": 3}, {"resume": "auto"}, {"output_dir": "elsewhere"}])
def test_what_does_not_decide_the_result_may_change(tmp_path, change):
    save(a_state(tmp_path), 4)
    assert a_state(tmp_path, **change).load()[0].step == 4


def test_only_so_many_checkpoints_are_kept(tmp_path):
    save(a_state(tmp_path, keep_checkpoints=2), 2, 4, 6, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_just_written(tmp_path):
    state = a_state(tmp_path, keep_checkpoints=2)
    save(state, 4, 8)
    cut(tmp_path / "step-00000008" / "state.json")
    state = a_state(tmp_path, keep_checkpoints=1)
    assert state.load()[0].step == 4
    save(state, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    assert a_state(tmp_path).load()[0].step == 6


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    state = a_state(tmp_path)
    save(state, 4)
    monkeypatch.setattr("hftransfer.training.state.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(state, 8)
    monkeypatch.undo()
    assert a_state(tmp_path).load()[0].step == 4


def test_the_state_is_plain_json_and_safetensors(tmp_path):
    save(a_state(tmp_path), 4)
    state = json.loads((tmp_path / "step-00000004" / "state.json").read_text())
    assert state["progress"]["step"] == 4
    assert {path.suffix for path in (tmp_path / "step-00000004").iterdir()} == {".json", ".safetensors"}
