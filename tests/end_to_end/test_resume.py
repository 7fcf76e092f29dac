"""A training that was killed and resumed ends with the very bits of one that ran through; and what ends a training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from hftransfer.errors import TrainingError
from hftransfer.finetuning import finetune
from hftransfer.recipe import Recipe
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training import loop
from tests.tiny_models import WORDS, write_tiny_checkpoint

ROWS = [
    {"text": " ".join(WORDS[index : index + 2 + index % 5]), "label": ("a", "b", "c")[index % 3]} for index in range(22)
]
VALIDATION = ROWS[:7]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), "bert", 0.1)


class Killed(Exception):
    """Stands for a SIGKILL between two steps."""


def a_recipe(checkpoint, folder, strategy="full_fine_tuning", evaluation=None, **settings):
    optim = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    return Recipe(
        checkpoint=str(checkpoint),
        output_dir=str(folder),
        strategy=strategy,
        optim={**optim, **settings.pop("optim", {})},
        evaluation=evaluation or {"every": 3},
        # What preflight does to a run, and that it leaves it as it was, is tested in unit/preflight and contract.
        **{"preflight": "off", **settings},
    )


def train(recipe):
    return finetune(recipe, train=ROWS, validation=VALIDATION)


def weights(run):
    return {
        (path.name, name): tensor
        for path in sorted(run.model_folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def kill_before(monkeypatch, step):
    real = loop.training_step

    def dying(*args, **kwargs):
        if kwargs["step"] == step:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "training_step", dying)


@pytest.mark.parametrize(
    ("strategy", "keep", "retain"),
    [
        ("full_fine_tuning", "best", "l2_sp"),
        ("full_fine_tuning", "last", "mixout"),
        ("full_fine_tuning", "last", "ewc"),
        ("full_fine_tuning", "ema", "none"),
        ("gradual_unfreezing", "best", "none"),
        ("gradual_unfreezing", "last", "none"),
        ("gradual_unfreezing", "ema", "none"),
        ("gradual_unfreezing", "soup", "mixout"),
        ("lora", "best", "none"),
        ("lora", "last", "none"),
        ("lora", "soup", "none"),
    ],
)
def test_a_resumed_training_ends_with_the_same_bits(strategy, keep, retain, checkpoint, tmp_path, monkeypatch):
    # A mean over three steps, of which a kill takes one or two.
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    settings = {"strategy": strategy, "evaluation": {"every": 3, "keep": keep}, "optim": {"retain": retain}}
    whole = train(a_recipe(checkpoint, tmp_path / "whole", **settings))
    resumable = a_recipe(checkpoint, tmp_path / "killed", checkpoint_every=2, resume="auto", **settings)
    for step in (5, 9):
        with monkeypatch.context() as patch:
            kill_before(patch, step)
            with pytest.raises(Killed):
                train(resumable)
        assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == [f"step-{step - 1:08d}"]
    resumed = train(resumable)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert [{**record, "time": 0} for record in resumed.log] == [{**record, "time": 0} for record in whole.log]
    assert resumed.metrics["validation"] == whole.metrics["validation"]
    assert resumed.metrics["training"]["best_step"] == whole.metrics["training"]["best_step"]


def test_contrastive_training_resumes_with_the_same_bits(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    settings = {
        "strategy": {"type": "contrastive", "pairs": 2},
        "evaluation": {"keep": "last"},
        "optim": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 1},
    }
    whole = train(a_recipe(checkpoint, tmp_path / "whole", **settings))
    # 22 anchors in batches of 4, twice, and the step that fits the head.
    assert whole.metrics["training"]["steps"] == 13
    assert [record["step"] for record in whole.log if "validation_accuracy" in record] == [13]
    assert [(record["step"], record["stage"]) for record in whole.log if "loss" in record][-2:] == [
        (12, "pairs"),
        (13, "head"),
    ]
    resumable = a_recipe(checkpoint, tmp_path / "killed", checkpoint_every=4, resume="auto", **settings)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        kill_before(patch, 6)
        with pytest.raises(Killed):
            train(resumable)
    # Killed once more behind the last batch of pairs, before there is a head.
    with monkeypatch.context() as patch:
        patch.setattr(loop.head_fit, "fit_head", die)
        with pytest.raises(Killed):
            train(resumable)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-00000012"]
    resumed = train(resumable)
    expected, found = weights(whole), weights(resumed)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert [{**record, "time": 0} for record in resumed.log] == [{**record, "time": 0} for record in whole.log]
    assert resumed.metrics["validation"] == whole.metrics["validation"]


def test_another_recipe_does_not_resume(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_before(patch, 3)
        with pytest.raises(Killed):
            train(a_recipe(checkpoint, tmp_path, checkpoint_every=2))
    with pytest.raises(TrainingError, match=r"optim.learning_rate: 0.00015 -> 0.01.*--resume force"):
        train(a_recipe(checkpoint, tmp_path, resume="auto", optim={"learning_rate": 0.01}))
    forced = train(a_recipe(checkpoint, tmp_path, resume="force", optim={"learning_rate": 0.01}))
    (record,) = [record for record in forced.log if "event" in record]
    assert (record["step"], record["changes"]) == (2, ["forced: optim.learning_rate: 0.00015 -> 0.01"])
    assert forced.metrics["training"]["steps"] == 12


def test_another_strategy_is_not_forced(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_before(patch, 3)
        with pytest.raises(Killed):
            train(a_recipe(checkpoint, tmp_path, checkpoint_every=2))
    with pytest.raises(TrainingError, match="holds other weights than those that learn now"):
        train(a_recipe(checkpoint, tmp_path, "lora", resume="force"))


def test_a_log_of_a_run_that_saved_nothing_starts_anew(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    with monkeypatch.context() as patch:
        kill_before(patch, 3)
        with pytest.raises(Killed):
            train(a_recipe(checkpoint, tmp_path))
    run = train(a_recipe(checkpoint, tmp_path, resume="auto"))
    assert [record["step"] for record in run.log if "loss" in record] == list(range(1, 13))


def scripted_scores(monkeypatch, values):
    """Give evaluations these accuracies and note the weights at each of them."""
    values, seen = list(values), []

    def score(self, predictions, features):
        return {"accuracy": values[min(len(seen) - 1, len(values) - 1)]}

    real = loop.predict

    def watched(model, *args, **kwargs):
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return real(model, *args, **kwargs)

    monkeypatch.setattr(loop, "predict", watched)
    monkeypatch.setattr(TextClassificationTask, "score", score)
    return seen


def test_the_best_weights_of_an_early_stage_are_restored_whole(checkpoint, tmp_path, monkeypatch):
    seen = scripted_scores(monkeypatch, [0.9, 0.5])
    run = train(a_recipe(checkpoint, tmp_path, "gradual_unfreezing", {"every": 1}))
    assert run.metrics["training"]["best_step"] == 1
    changed = [name for name in seen[0] if not torch.equal(seen[0][name], seen[-1][name])]
    assert any("embeddings" in name for name in changed), "the later stages did train what the first left alone"
    for (_, name), tensor in weights(run).items():
        assert torch.equal(tensor, seen[0][name]), name


def test_of_equal_scores_the_later_weights_are_kept(checkpoint, tmp_path, monkeypatch):
    seen = scripted_scores(monkeypatch, [0.4, 0.9, 0.9, 0.5])
    run = train(a_recipe(checkpoint, tmp_path, evaluation={"every": 2}, optim={"max_steps": 8}))
    assert run.metrics["training"]["best_step"] == 6
    for (_, name), tensor in weights(run).items():
        assert torch.equal(tensor, seen[2][name]), name


def test_a_nan_score_never_becomes_the_best(checkpoint, tmp_path, monkeypatch):
    scripted_scores(monkeypatch, [float("nan"), 0.2, float("nan"), 0.1])
    run = train(a_recipe(checkpoint, tmp_path))
    assert run.metrics["training"]["best_step"] == 6


def test_early_stopping_counts_evaluations_without_a_gain(checkpoint, tmp_path, monkeypatch):
    scripted_scores(monkeypatch, [0.1, 0.4, 0.4, 0.3, 0.9])
    run = train(a_recipe(checkpoint, tmp_path, evaluation={"every": 1, "early_stopping_patience": 2}))
    assert run.metrics["training"]["steps"] == 4, "a score that is as good is no gain"
    assert run.metrics["training"]["best_step"] == 3


@pytest.mark.parametrize(
    ("every", "max_steps", "expected"), [(2, 5, [2, 4, 5]), (None, 8, [6, 8]), (None, None, [6, 12]), (50, 3, [3])]
)
def test_when_it_evaluates_and_ends(every, max_steps, expected, checkpoint, tmp_path):
    run = train(a_recipe(checkpoint, tmp_path, evaluation={"every": every}, optim={"max_steps": max_steps}))
    assert [record["step"] for record in run.log if "validation_accuracy" in record] == expected
    assert run.metrics["training"]["steps"] == expected[-1]


@pytest.mark.parametrize(
    ("strategy", "rates"),
    [
        ("feature_extraction", [1e-3]),
        ("gradual_unfreezing", [5e-3, 1e-3, 1e-3, 1e-3]),
        ("lp_ft", [5e-3, 1e-3]),
        ("full_fine_tuning", [5e-3]),
        ("lora", [5e-3]),
    ],
)
def test_the_rate_of_the_head(strategy, rates, checkpoint, tmp_path, monkeypatch):
    groups = []

    class Seen(Exception):
        pass

    def run(self):
        groups.extend(self.groups)
        raise Seen

    monkeypatch.setattr(loop.Training, "run", run)
    with pytest.raises(Seen):
        train(a_recipe(checkpoint, tmp_path, strategy, optim={"learning_rate": 1e-3, "head_learning_rate": 5e-3}))
    highest = [max(group["depth"] for group in stage) for stage, _ in groups]
    found = [
        {group["lr"] for group in stage if group["depth"] == top}
        for (stage, _), top in zip(groups, highest, strict=True)
    ]
    assert found == [{rate} for rate in rates]


@pytest.mark.parametrize(("strategy", "steps"), [("lp_ft", 5), ("gradual_unfreezing", 7)])
def test_patience_ends_the_last_stage_alone(strategy, steps, checkpoint, tmp_path, monkeypatch):
    scripted_scores(monkeypatch, [0.5] * 20)
    evaluation = {"every": 1, "early_stopping_patience": 1}
    run = train(a_recipe(checkpoint, tmp_path, strategy=strategy, evaluation=evaluation))
    # The last stage begins after 4 and 6 of 12 steps, and gains nothing in its first one.
    assert run.metrics["training"]["steps"] == steps


def test_weights_that_others_are_pulled_to_must_be_the_same(tmp_path, monkeypatch):
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    recipe = a_recipe(folder, tmp_path / "run", optim={"retain": "l2_sp"}, checkpoint_every=2, resume="auto")
    with monkeypatch.context() as patch:
        kill_before(patch, 5)
        with pytest.raises(Killed):
            train(recipe)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    save_file({**weights, name: weights[name] + 0.1}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="pretrained weights: other contents"):
        train(recipe)
