"""How a training ends before its end: numbers that are none, memory, signals, another run in its folder."""

from __future__ import annotations

import gc
import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from hftransfer.cli.main import guarded
from hftransfer.errors import RecipeError, TrainingError
from hftransfer.finetuning import finetune
from hftransfer.interruption import EXIT_STATUS
from hftransfer.locking import FolderLock
from hftransfer.recipe import Recipe
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training import loop
from tests.tiny_models import WORDS, write_tiny_checkpoint

ROWS = [
    {"text": " ".join(WORDS[index : index + 2 + index % 5]), "label": ("a", "b", "c")[index % 3]} for index in range(22)
]
CLASSES = TextClassificationTask
# The step that is being made, and calls of the loss in it.
NOW: dict[str, int] = {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), "bert", 0.1)


def settings(checkpoint, folder, **changes):
    optim = {"per_device_train_batch_size": 4, "num_train_epochs": 2, **changes.pop("optim", {})}
    given = {"checkpoint": str(checkpoint), "output_dir": str(folder), "evaluation": {"every": 3}, **changes}
    # Preflight would make the steps that are counted and broken here.
    return given | {"optim": optim, "preflight": "off"}


def train(*args, **changes):
    return finetune(Recipe(**settings(*args, **changes)), train=ROWS, validation=ROWS[:7])


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder):
    (left,) = (folder / "checkpoints").iterdir()
    return json.loads((left / "state.json").read_text())["progress"]["step"], load_file(left / "weights.safetensors")


def weights_before(monkeypatch, wanted):
    """Note the weights as they are before a step."""
    noted, real = {}, loop.training_step

    def noting(accelerator, model, *args, **kwargs):
        NOW.update(step=kwargs["step"], calls=0)
        if kwargs["step"] == wanted:
            noted.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return real(accelerator, model, *args, **kwargs)

    monkeypatch.setattr(loop, "training_step", noting)
    return noted


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_its_examples(checkpoint, tmp_path, monkeypatch):
    before, real = weights_before(monkeypatch, 4), CLASSES.loss

    def loss(self, outputs, batch):
        NOW["calls"] += 1
        # The second of the two micro-batches of the fifth step.
        return real(self, outputs, batch) * (math.nan if (NOW["step"], NOW["calls"]) == (4, 2) else 1.0)

    monkeypatch.setattr(CLASSES, "loss", loss)
    rows, collate = [], CLASSES.collate
    monkeypatch.setattr(
        CLASSES, "collate", lambda self, features, some, seed=None: rows.append(some) or collate(self, features, some)
    )
    accumulated = {"optim": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5 \(rate .*--resume force") as error:
        train(checkpoint, tmp_path, cache={"max_bytes": 0}, **accumulated)
    assert "\n" not in str(error.value)
    examples = sorted(map(int, rows[-1]))
    assert f"training examples {', '.join(map(str, examples))}, counted from 0" in str(error.value)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (records[-1]["step"], records[-1]["examples"]) == (5, examples)
    step, kept = saved(tmp_path)
    assert step == 4
    assert same(kept, before)
    monkeypatch.setattr(CLASSES, "loss", real)
    changed = {"optim": {**accumulated["optim"], "learning_rate": 1e-5}}
    assert train(checkpoint, tmp_path, resume="force", **changed).metrics["training"]["steps"] == 12


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_an_infinite_gradient_stops_before_the_update(max_grad_norm, checkpoint, tmp_path, monkeypatch):
    before = weights_before(monkeypatch, 2)
    inner = loop.training_step

    def exploding(accelerator, model, *args, **kwargs):
        if kwargs["step"] == 2:
            model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
        return inner(accelerator, model, *args, **kwargs)

    monkeypatch.setattr(loop, "training_step", exploding)
    with pytest.raises(TrainingError, match="the gradient is not finite at step 3"):
        train(checkpoint, tmp_path, optim={"max_grad_norm": max_grad_norm})
    step, kept = saved(tmp_path)
    assert step == 2
    assert same(kept, before)


def test_weights_that_are_no_numbers_replace_no_checkpoint(checkpoint, tmp_path, monkeypatch):
    inner = loop.training_step

    def overflowing(accelerator, model, *args, **kwargs):
        result = inner(accelerator, model, *args, **kwargs)
        if kwargs["step"] == 2:
            model.classifier.weight.data[0, 0] = math.inf
        return result

    monkeypatch.setattr(loop, "training_step", overflowing)
    with pytest.raises(TrainingError, match="at step 4"):
        train(checkpoint, tmp_path, checkpoint_every=2, evaluation={"every": 100})
    assert saved(tmp_path)[0] == 2


def run_out_of_memory(monkeypatch, fits, error, since=0):
    """More rows at once than `fits` are too many, from a call on."""
    real, calls = CLASSES.loss, []

    def loss(self, outputs, batch):
        calls.append(len(batch["labels"]))
        if len(calls) > since and calls[-1] > fits:
            raise error
        return real(self, outputs, batch)

    monkeypatch.setattr(CLASSES, "loss", loss)


def test_what_does_not_fit_at_first_is_halved_and_the_batch_stays(checkpoint, tmp_path, monkeypatch):
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    expected = weights(train(checkpoint, tmp_path / "small", optim=small).folder)
    run_out_of_memory(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory."))
    run = train(checkpoint, tmp_path / "large")
    assert same(weights(run.folder), expected)
    events = [record["event"] for record in run.log if "event" in record]
    assert events == [f"out of memory: {size} -> {size // 2} rows at once, 4 per step as before" for size in (4, 2)]
    assert run.metrics["training"]["rows_at_once"] == 1


def test_what_no_longer_fits_later_ends_the_run_which_goes_on_with_less(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        run_out_of_memory(patch, 2, torch.OutOfMemoryError("CUDA out of memory."), since=5)
        with pytest.raises(TrainingError, match=r"out of memory at step 6 with 4 rows at once; set .* to 2") as error:
            train(checkpoint, tmp_path)
        assert "\n" not in str(error.value)
        assert saved(tmp_path)[0] == 5
        less = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        run = train(checkpoint, tmp_path, resume="auto", optim=less)
    assert run.metrics["training"]["steps"] == 12
    assert [record["changes"] for record in run.log if "event" in record] == [["rows at once: 4 -> 2"]]


def test_one_row_that_does_not_fit_ends_the_run_in_one_line(checkpoint, tmp_path, monkeypatch):
    run_out_of_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(TrainingError, match="out of memory at step 1 with 1 rows at once; shorten"):
        train(checkpoint, tmp_path)


def test_other_errors_of_a_step_keep_their_traceback(checkpoint, tmp_path, monkeypatch):
    run_out_of_memory(monkeypatch, 0, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        train(checkpoint, tmp_path)


def test_a_signal_saves_even_an_evaluation_that_is_still_due(checkpoint, tmp_path, monkeypatch, capsys):
    whole = train(checkpoint, tmp_path / "whole", optim={"per_device_eval_batch_size": 2})
    real, calls = CLASSES.predictions, []

    def signalled(self, *args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, *args)

    monkeypatch.setattr(CLASSES, "predictions", signalled)
    again = {"optim": {"per_device_eval_batch_size": 2}, "resume": "auto"}
    assert guarded(lambda: train(checkpoint, tmp_path / "stopped", **again)) == EXIT_STATUS
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted by SIGUSR1, saved at step 3; continue with --resume auto --output_dir {tmp_path / 'stopped'}"
    )
    assert len(calls) == 2, "the evaluation was not broken off"
    (left,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    assert json.loads((left / "state.json").read_text())["progress"]["evaluation_due"]
    run = train(checkpoint, tmp_path / "stopped", **again)
    assert same(weights(run.folder), weights(whole.folder))
    assert [{**record, "time": 0} for record in run.log] == [{**record, "time": 0} for record in whole.log]
    assert run.metrics["validation"] == whole.metrics["validation"]


def test_a_folder_in_which_another_run_writes_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FolderLock() as lock:
        lock.acquire(folder)
        for changes in ({}, {"overwrite": True}, {"resume": "auto"}):
            with pytest.raises(RecipeError, match=f"another run writes there .process {os.getpid()} "):
                train(checkpoint, folder, **changes)
    assert not list(folder.iterdir())
    run = train(checkpoint, folder)
    assert not (run.folder / ".lock").exists()


def modules_in_memory():
    return sum(isinstance(one, torch.nn.Module) for one in gc.get_objects())


@pytest.mark.parametrize(
    ("strategy", "keep"),
    [
        ("feature_extraction", "last"),
        ("full_fine_tuning", "best"),
        ("gradual_unfreezing", "soup"),
        ("lora", "ema"),
        ("contrastive", "last"),
    ],
)
def test_a_finished_training_leaves_no_model_in_memory(checkpoint, tmp_path, strategy, keep):
    recipe = Recipe(
        checkpoint=str(checkpoint),
        output_dir=str(tmp_path),
        strategy=strategy,
        optim={"max_steps": 4},
        evaluation={"keep": keep},
        overwrite=True,
    )
    finetune(recipe, train=ROWS, validation=ROWS[:8])
    gc.collect()
    before = modules_in_memory()
    gc.disable()
    try:
        finetune(recipe, train=ROWS, validation=ROWS[:8])
        assert modules_in_memory() == before
    finally:
        gc.enable()
