"""Checkpoints: a roundtrip, damage that is found, and checkpoints that belong to something else."""

from __future__ import annotations

import dataclasses
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hftransfer.errors import TrainingError
from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features
from hftransfer.training import checkpoint_files, identity
from hftransfer.training.checkpoint_files import FILES, MANIFEST
from hftransfer.training.defaults import resolve
from hftransfer.training.prepare import derive_schedule
from hftransfer.training.state import Batching, Progress, TrainingState, began_on

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, scaler=None, wait_for_everyone=lambda: None)
RECIPE = Recipe(checkpoint="some/model", resume="auto")
BATCHING = Batching(8, 4)
FEATURES = Features(
    {"input_ids": np.arange(6, dtype=np.int32)}, np.asarray([0, 2, 6]), np.asarray([0, 1]), np.arange(2)
)


def a_state(folder, accelerator=ALONE, features=FEATURES, weights="frozen", **changes):
    recipe = RECIPE.model_copy(update=changes)
    return TrainingState(folder, recipe, identity.data_hash([features]), weights, accelerator)


def found(folder, batching=BATCHING, **changes):
    return a_state(folder, **changes).find(batching)


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
        progress = Progress(step=step, best_score=0.5)
        state.save(progress, weights, {"weight": torch.ones(2, 2)}, an_optimizer(), BATCHING, epoch=0, stage="all")
    state.close()
    state.flush()


def test_what_is_saved_comes_back(tmp_path):
    state = a_state(tmp_path)
    progress = Progress(7, 0.25, 5, {"accuracy": 0.25, "roc_auc": float("nan")}, 1, False, True, 0.1, 3, seconds=3.5)
    weights, best = {"a": torch.randn(3), "b": torch.randn(2, 2, dtype=torch.bfloat16)}, {"a": torch.zeros(3)}
    optimizer = an_optimizer()
    state.save(progress, weights, best, optimizer, BATCHING, epoch=1, offset=8, stage="head")
    state.flush()
    fresh = a_state(tmp_path)
    it = fresh.find(BATCHING)
    assert str(dataclasses.asdict(it.progress)) == str(dataclasses.asdict(progress))
    assert all(torch.equal(it.weights()[name], weights[name]) for name in weights)
    assert torch.equal(it.weights("best")["a"], best["a"])
    assert (it.changes, it.batching) == ([], BATCHING)
    other = an_optimizer(steps=0)
    assert fresh.load_optimizer(other) == ""
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(other.state_dict()["state"][index][name], value), (index, name)
    assert sorted(path.name for path in (tmp_path / "step-00000007").iterdir()) == sorted([*FILES, MANIFEST])


def test_it_says_where_the_training_was_and_with_what(tmp_path):
    save(a_state(tmp_path), 4)
    state = json.loads((tmp_path / "step-00000004" / "state.json").read_text())
    assert (state["progress"]["step"], state["epoch"], state["stage"], state["seed"]) == (4, 0, "all", 13)
    assert state["recipe"]["optim.lr_scheduler_type"] == "linear"
    assert state["surroundings"]["processes"] == 1
    assert state["surroundings"]["torch"] == torch.__version__
    assert {path.suffix for path in (tmp_path / "step-00000004").iterdir()} == {".json", ".safetensors"}


def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    may_write, real = threading.Event(), checkpoint_files.write
    monkeypatch.setattr(checkpoint_files, "write", lambda *args: may_write.wait(10) and real(*args))
    state, weights, optimizer = a_state(tmp_path), {"weight": torch.ones(2)}, an_optimizer()
    moments = [value["exp_avg"].clone() for value in optimizer.state.values()]
    state.save(Progress(step=2), weights, {}, optimizer, BATCHING)
    # What the next step changes is not what is being written.
    weights["weight"].add_(1.0)
    optimizer.step()
    assert not list(tmp_path.iterdir())
    may_write.set()
    state.flush()
    it = found(tmp_path)
    assert torch.equal(it.weights()["weight"], torch.ones(2))
    assert all(torch.equal(it.weights("optimizer")[f"{i}.exp_avg"], moment) for i, moment in enumerate(moments))


def test_memory_of_copies_is_used_again(tmp_path):
    state, weights = a_state(tmp_path), {"weight": torch.ones(2)}
    state.prepare(weights, an_optimizer())
    state.flush()
    prepared = state._buffers["weights/weight"]
    state.save(Progress(step=2), weights, {}, an_optimizer(), BATCHING)
    assert state._buffers["weights/weight"] is prepared
    assert "moments/1.exp_avg_sq" in state._buffers
    state.flush()


def test_what_fails_in_the_background_is_told_at_the_next_save(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    state = a_state(tmp_path)
    save(state, 2)
    monkeypatch.setattr(checkpoint_files, "write", full)
    state.save(Progress(step=4), {}, {}, None, BATCHING)
    with pytest.raises(TrainingError, match="a checkpoint cannot be written: no space left") as error:
        state.save(Progress(step=6), {}, {}, None, BATCHING)
    assert "\n" not in str(error.value)
    assert found(tmp_path).progress.step == 2


def test_room_is_looked_for_before_anything_is_written(tmp_path, monkeypatch):
    state = a_state(tmp_path)
    save(state, 2)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=70_000))
    with pytest.raises(TrainingError, match=r"a checkpoint needs 4.1 MB and 0.1 MB are free"):
        state.save(Progress(step=4), {"weight": torch.ones(1_000_000)}, {}, None, BATCHING)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_no_checkpoint_is_no_error(tmp_path):
    assert found(tmp_path / "none") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()], ids=["cut", "flip", "missing"])
def test_damage_is_found_and_the_older_checkpoint_taken(tmp_path, name, damage):
    save(a_state(tmp_path, keep_checkpoints=2), 4, 8)
    assert found(tmp_path).progress.step == 8
    damage(tmp_path / "step-00000008" / name)
    state = a_state(tmp_path)
    assert state.find(BATCHING).progress.step == 4
    assert torch.equal(state.found.weights()["weight"], torch.full((2, 2), 4.0))
    (named,) = state.damaged
    assert "step-00000008" in named
    damage(tmp_path / "step-00000004" / name)
    with pytest.raises(TrainingError, match="no intact checkpoint") as error:
        found(tmp_path)
    assert "\n" not in str(error.value)


def test_a_manifest_that_lists_nothing_vouches_for_nothing(tmp_path):
    save(a_state(tmp_path), 4)
    (tmp_path / "step-00000004" / MANIFEST).write_text("{}")
    with pytest.raises(TrainingError, match="no intact"):
        found(tmp_path)


def test_a_checkpoint_under_another_name_is_damaged(tmp_path):
    save(a_state(tmp_path), 4)
    (tmp_path / "step-00000004").rename(tmp_path / "step-00000009")
    with pytest.raises(TrainingError, match="no intact"):
        found(tmp_path)


DIFFERENT = [
    ({"seed": 99}, "seed: 13 -> 99"),
    ({"optim": RECIPE.optim.model_copy(update={"learning_rate": 0.5})}, "optim.learning_rate: nothing -> 0.5"),
    ({"features": dataclasses.replace(FEATURES, labels=np.asarray([1, 0]))}, "the data: other contents"),
    ({"weights": "others"}, "the pretrained weights: other contents"),
    ({"batching": Batching(16, 4)}, "examples per step: 8 -> 16"),
]


@pytest.mark.parametrize(("other", "what"), DIFFERENT)
def test_a_checkpoint_of_something_else_is_refused_in_one_line_unless_it_is_forced(tmp_path, other, what):
    save(a_state(tmp_path), 4)
    with pytest.raises(TrainingError, match="--resume force") as error:
        found(tmp_path, **other)
    assert what in str(error.value)
    assert "\n" not in str(error.value)
    assert found(tmp_path, resume="force", **other).changes == [f"forced: {what}"]


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    save(a_state(tmp_path), 4)
    monkeypatch.setattr("hftransfer.training.state.FORMAT", 99)
    with pytest.raises(TrainingError, match="another version"):
        found(tmp_path, resume="force")


def test_another_number_of_processes_is_a_change_and_no_error(tmp_path):
    save(a_state(tmp_path), 4)
    two = SimpleNamespace(**{**vars(ALONE), "num_processes": 2})
    assert found(tmp_path, accelerator=two, batching=Batching(16, 4)).changes == ["processes: 1 -> 2"]


def test_the_schedule_follows_the_processes_that_the_run_began_on(tmp_path):
    resumed = RECIPE.model_copy(update={"output_dir": str(tmp_path)})
    assert began_on(resumed) is None
    two = SimpleNamespace(**{**vars(ALONE), "num_processes": 2})
    save(a_state(tmp_path / "checkpoints", accelerator=two), 4)
    assert began_on(resumed) == 2
    alone = a_state(tmp_path / "checkpoints", keep_checkpoints=2)
    alone.find(BATCHING)
    save(alone, 6)
    assert began_on(resumed) == 2, "and not what wrote the newest one"
    assert began_on(resumed.model_copy(update={"resume": "never"})) is None
    recipe, origins = resolve(Recipe(checkpoint="m", strategy="full_fine_tuning"))
    derived = [derive_schedule(recipe, dict(origins), 240, processes).optim for processes in (1, 2)]
    assert derived[0].num_train_epochs != derived[1].num_train_epochs, "else nothing had to follow"
    newest, older = sorted((tmp_path / "checkpoints").glob("step-*"), reverse=True)
    (newest / "state.json").write_text("{")
    assert began_on(resumed) == 2
    (older / "state.json").write_text("{}")
    assert began_on(resumed) is None


SAME = [
    {"push_to_hub": True, "hub_model_id": "me/x", "report_examples": True},
    {"checkpoint_every": 3},
    {"resume": "force"},
    {"output_dir": "elsewhere"},
]
SAME += [{"optim": RECIPE.optim.model_copy(update={"gradient_accumulation_steps": 2})}]


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_decide_the_result_may_change(tmp_path, change):
    save(a_state(tmp_path), 4)
    assert found(tmp_path, **change).changes == []


def test_moments_that_do_not_fit_start_anew(tmp_path):
    save(a_state(tmp_path), 4)
    state = a_state(tmp_path)
    state.find(BATCHING)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(5))])
    assert "start anew" in state.load_optimizer(other)
    assert other.state_dict()["state"] == {}


def test_only_so_many_checkpoints_are_kept(tmp_path):
    save(a_state(tmp_path, keep_checkpoints=2), 2, 4, 6, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_just_written(tmp_path):
    save(a_state(tmp_path, keep_checkpoints=2), 4, 8)
    cut(tmp_path / "step-00000008" / "state.json")
    state = a_state(tmp_path, keep_checkpoints=1)
    assert state.find(BATCHING).progress.step == 4
    save(state, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    assert found(tmp_path).progress.step == 6


def test_a_kill_while_writing_leaves_the_old_checkpoint_and_its_remains_are_removed(tmp_path, monkeypatch):
    state = a_state(tmp_path)
    save(state, 4)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hftransfer.training.checkpoint_files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(state, 8)
    monkeypatch.undo()
    assert found(tmp_path).progress.step == 4
    (tmp_path / ".removing-step-00000002").mkdir()
    save(a_state(tmp_path), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
