"""Two processes train on the same examples per step, with the same losses and weights, as one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import running
from tests.tiny_models import WORDS, write_tiny_checkpoint

# 17 rows in batches of 8: the last one has a single row, so that one of two ranks is idle.
ROWS = [
    {
        "text": " ".join(WORDS[index : index + 1 + index * 3 % 11]),
        "label": ("a", "b", "c")[index % 3],
        "choices": WORDS[index : index + 2 + index % 3],
        "right": index % 2,
    }
    for index in range(17)
]
SETTINGS = [
    ("full", "full_fine_tuning", 1, {}),
    ("accumulated", "full_fine_tuning", 2, {"class_weights": "balanced"}),
    ("staged", "gradual_unfreezing", 1, {}),
    # Predictions of different lengths.
    ("choices", "full_fine_tuning", 1, {"type": "multiple_choice"}),
]
COLUMNS = {"choices": {"text_pair": "choices", "label": "right"}}
SCRIPT = """
import json, sys
import numpy as np
from hftransfer.data.batching import rank_slice
from hftransfer.finetuning import finetune
from hftransfer.recipe import Recipe
from hftransfer.training import loop

loop.LOG_EVERY = 1
settings = json.loads(open(sys.argv[1]).read())
step, evaluate = loop.training_step, loop.predict
noted = {}


def noted_step(accelerator, *args, **kwargs):
    noted["world_size"], noted["rank"] = accelerator.num_processes, accelerator.process_index
    rows = args[4]
    noted.setdefault("rows", []).append(rank_slice(rows, noted["rank"], noted["world_size"]).tolist())
    return step(accelerator, *args, **kwargs)


def noted_predictions(*args, **kwargs):
    predictions = evaluate(*args, **kwargs)
    noted.setdefault("predictions", []).append([row.tolist() for row in predictions])
    return predictions


loop.training_step, loop.predict = noted_step, noted_predictions
for name, recipe in settings["recipes"].items():
    noted.clear()
    run = finetune(Recipe(**recipe), train=settings["rows"], validation=settings["rows"][:9])
    with open(f"{recipe['output_dir']}/noted-{noted['rank']}.json", "w") as file:
        json.dump(noted, file)
"""


def launch(folder, checkpoint, processes):
    """Run all settings in one launch; a global batch has 8 rows however many processes there are."""
    folder.mkdir()
    recipes = {
        name: {
            "checkpoint": str(checkpoint),
            "output_dir": str(folder / name),
            "strategy": strategy,
            "task": task,
            "data": COLUMNS.get(name, {}),
            "optim": {
                "per_device_train_batch_size": 8 // processes // accumulation,
                "gradient_accumulation_steps": accumulation,
                "num_train_epochs": 2,
                "learning_rate": 1e-3,
            },
        }
        for name, strategy, accumulation, task in SETTINGS
    }
    settings = {"rows": ROWS, "recipes": recipes}
    # A feature cache of its own: two processes must share the encoding, not find what one process left.
    running.launch(folder, running.torchrun(processes), SCRIPT, settings, ACCELERATE_MIXED_PRECISION="no")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("ddp")
    checkpoint = write_tiny_checkpoint(base / "checkpoint", "bert", 0.0)
    return launch(base / "one", checkpoint, 1), launch(base / "two", checkpoint, 2)


def noted(folder, rank):
    return json.loads((folder / f"noted-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, *_ in SETTINGS])
def test_two_processes_do_what_one_does(runs, name):
    one, two = (folder / name for folder in runs)
    alone, first, second = noted(one, 0), noted(two, 0), noted(two, 1)
    assert (alone["world_size"], first["world_size"], second["world_size"]) == (1, 2, 2)
    assert [a + b for a, b in zip(first["rows"], second["rows"], strict=True)] == alone["rows"]
    assert any(not a or not b for a, b in zip(first["rows"], second["rows"], strict=True)), "no rank was ever idle"
    for found, expected in zip(first["predictions"], alone["predictions"], strict=True):
        for row, expected_row in zip(found, expected, strict=True):
            # What shifts all choices alike has no gradient but rounding noise, which Adam scales to full steps.
            shift = np.mean(row) - np.mean(expected_row) if name == "choices" else 0.0
            np.testing.assert_allclose(np.asarray(row) - shift, expected_row, atol=1e-4)
    assert first["predictions"] == second["predictions"]

    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)]
    losses = [[(record["step"], record["loss"]) for record in log if "loss" in record] for log in logs]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    # A key bias shifts all of a query's scores alike: its gradient is rounding noise, which Adam scales to full steps.
    noisy = ("key.bias", "classifier.bias") if name == "choices" else ("key.bias",)
    for weight in [weight for weight in expected if not weight.endswith(noisy)]:
        torch.testing.assert_close(found[weight], expected[weight], atol=1e-5, rtol=0.0)
