"""FSDP2 on two CPU processes trains what DDP trains, and leaves the same plain folder behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hftransfer.inference import predict
from tests import running
from tests.tiny_models import WORDS, write_tiny_checkpoint

# 17 rows in batches of 8: the last one has a single row, so that one of two ranks is idle.
ROWS = [
    {"text": " ".join(WORDS[index : index + 1 + index * 3 % 11]), "label": ("a", "b", "c")[index % 3]}
    for index in range(17)
]
RUNS = {
    "full_fine_tuning": {"optim": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}},
    "top_layers": {"strategy": {"type": "top_layers", "k": 1}, "checkpoint_every": 4},
    "gradual_unfreezing": {"strategy": {"type": "gradual_unfreezing", "stages": 3}, "checkpoint_every": 4},
    "lora": {"strategy": {"type": "lora", "r": 2}},
    "merged": {"strategy": {"type": "lora", "r": 2, "merge": True}},
}
PREFLIGHTED = "gradual_unfreezing"
RESUMED = ("top_layers", "gradual_unfreezing")
SCRIPT = """
import json, sys

import torch.distributed
from torch.distributed.tensor import DTensor

from hftransfer.finetuning import finetune
from hftransfer.recipe import Recipe
from hftransfer.training import loop

loop.LOG_EVERY = 1
settings = json.loads(open(sys.argv[1]).read())
step = loop.training_step
sharded = set()


class Killed(Exception):
    pass


def noted_step(accelerator, model, *args, **kwargs):
    if kwargs["step"] == noted_step.die_at:
        raise Killed
    shards = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
    sharded.add((str(accelerator.distributed_type), accelerator.num_processes, len(shards) > 0))
    return step(accelerator, model, *args, **kwargs)


def train(recipe, die_at=None):
    noted_step.die_at = die_at
    return finetune(Recipe(**recipe), train=settings["rows"], validation=settings["rows"][:9], test=settings["rows"])


loop.training_step = noted_step
for name, recipe in settings["recipes"].items():
    train(recipe)
for name in settings["resumed"]:
    again = {**settings["recipes"][name], "output_dir": settings["recipes"][name]["output_dir"] + "-resumed"}
    try:
        train({**again, "resume": "auto"}, die_at=5)
    except Killed:
        pass
    train({**again, "resume": "auto"})
if torch.distributed.get_rank() == 0:
    with open(settings["noted"], "w") as file:
        json.dump(sorted(sharded), file)
"""


def job(folder: Path, checkpoint: Path, config: str, resumed: Sequence[str] = ()) -> running.Job:
    """All settings in two processes, with a config that we ship; some a second time, killed."""
    folder.mkdir()
    optim = {"per_device_train_batch_size": 4, "num_train_epochs": 3, "learning_rate": 1e-2}
    recipes = {
        name: {
            "checkpoint": str(checkpoint),
            "output_dir": str(folder / name),
            "preflight": "warn" if name == PREFLIGHTED else "off",
            **settings,
            "optim": {**optim, **settings.get("optim", {})},
        }
        for name, settings in RUNS.items()
    }
    settings = {"rows": ROWS, "recipes": recipes, "resumed": resumed, "noted": str(folder / "noted.json")}
    return running.Job(2, settings, running.launched_environment(config))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("fsdp")
    checkpoint = write_tiny_checkpoint(base / "checkpoint", "bert", 0.0)
    jobs = {
        base / "whole": job(base / "whole", checkpoint, "cpu.yaml"),
        base / "sharded": job(base / "sharded", checkpoint, "fsdp2.yaml", RESUMED),
    }
    (base / "output.txt").write_text(running.fork_ranks(base, SCRIPT, jobs))
    return tuple(jobs)


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((run / "model").glob("*.safetensors")):
        found |= {f"{path.name} {name}": tensor for name, tensor in load_file(path).items()}
    return found


@pytest.mark.slow
def test_the_weights_were_sharded(runs):
    whole, sharded = (json.loads((folder / "noted.json").read_text()) for folder in runs)
    assert whole == [["DistributedType.MULTI_CPU", 2, False]]
    assert sharded == [["DistributedType.FSDP", 2, True]]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_shards_train_to_the_same_plain_folder(runs, name):
    whole, sharded = (folder / name for folder in runs)
    losses = [
        [record["loss"] for record in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in record]
        for run in (whole, sharded)
    ]
    assert len(losses[0]) == 9
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    expected, found = weights(whole), weights(sharded)
    assert list(found) == list(expected)
    # A key bias shifts all of a query's scores alike: its gradient is rounding noise, which Adam scales to full steps.
    for key in [key for key in expected if not key.endswith("key.bias")]:
        torch.testing.assert_close(found[key], expected[key], atol=2e-4, rtol=0.0, msg=lambda text, key=key: key + text)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (whole, sharded)]
    assert metrics[1]["training"]["best_step"] == metrics[0]["training"]["best_step"]
    assert metrics[1]["test"] == pytest.approx(metrics[0]["test"], abs=1e-3)
    config = json.loads((sharded / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.slow
def test_the_folder_loads_without_us_and_predicts(runs):
    folder = runs[1] / "merged" / "model"
    assert not (folder / "adapter_config.json").exists()
    AutoModelForSequenceClassification.from_pretrained(folder)
    assert len(predict(runs[1] / "lora", ["a good film"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_sharded_training_that_was_killed_ends_with_the_same_bits(runs, name):
    through, resumed = runs[1] / name, runs[1] / f"{name}-resumed"
    assert "resumed at step 4" in (runs[1].parent / "output.txt").read_text()
    expected, found = weights(through), weights(resumed)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
