"""Two processes train on the same examples per step, with the same losses and weights, as one."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests import running
from tests.tiny_models import WORDS, write_tiny_checkpoint

NO_ANSWER: dict[str, list[object]] = {"text": [], "answer_start": []}
# 17 rows in batches of 8: the last one has a single row, so that one of two ranks is idle.
ROWS = [
    {
        "text": " ".join(WORDS[index : index + 1 + index * 3 % 11]),
        "label": ("a", "b", "c")[index % 3],
        "choices": WORDS[index : index + 2 + index % 3],
        "right": index % 2,
        "words": WORDS[index : index + 1 + index % 4],
        "tags": ["O", "B-a", "I-a", "B-b"][: 1 + index % 4],
        "answers": {"text": WORDS[index : index + 1], "answer_start": [0]} if index % 3 else NO_ANSWER,
        "output": " ".join(WORDS[20 + index : 22 + index + index % 3]),
    }
    for index in range(17)
]
SETTINGS = [
    ("full", "full_fine_tuning", 1, {}),
    ("accumulated", "full_fine_tuning", 2, {"balance": "classes"}),
    ("staged", "gradual_unfreezing", 1, {}),
    ("frozen", "feature_extraction", 1, {}),
    # Predictions of different lengths.
    ("choices", "full_fine_tuning", 1, {"type": "multiple_choice"}),
    # Losses over words, windows and tokens, of which the ranks have unequal numbers.
    ("tags", "full_fine_tuning", 1, {"type": "token_classification"}),
    ("answers", "full_fine_tuning", 1, {"type": "question_answering"}),
    ("outputs", "full_fine_tuning", 2, {"type": "seq2seq", "max_new_tokens": 6, "label_smoothing": 0.1}),
    ("completions", "full_fine_tuning", 2, {"type": "causal_lm", "max_new_tokens": 6}),
    ("packed", "full_fine_tuning", 1, {"type": "causal_lm"}),
    ("masked", "full_fine_tuning", 2, {"type": "masked_lm"}),
]
PREFLIGHTED = ("full", "staged", "packed")
COLUMNS = {
    "choices": {"text_pair": "choices", "label": "right"},
    "tags": {"text": "words", "label": "tags"},
    "answers": {"text": "output", "text_pair": "text", "label": "answers"},
    "outputs": {"label": "output"},
    "completions": {"label": "output"},
    "packed": {"max_length": 8},
}
CHECKPOINTS = {
    "outputs": "t5/AutoModelForSeq2SeqLM",
    "completions": "llama/AutoModelForCausalLM",
    "packed": "llama/AutoModelForCausalLM",
    "masked": "bert/AutoModelForMaskedLM",
}
# A key bias shifts all of a query's scores alike, and so does the bias of what scores choices or tokens of a context,
# or of the states that are scored: their gradient is rounding noise, which Adam scales to full steps.
NOISY = {
    "choices": ("key.bias", "classifier.bias"),
    "answers": ("key.bias", "qa_outputs.bias", "layer.2.output.LayerNorm.bias"),
}
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


def job(folder, checkpoints, processes):
    """All settings in so many processes; a global batch has 8 rows however many there are."""
    folder.mkdir()
    recipes = {
        name: {
            "checkpoint": str(checkpoints / CHECKPOINTS.get(name, "bert/AutoModel")),
            "output_dir": str(folder / name),
            "strategy": strategy,
            "task": task,
            "data": COLUMNS.get(name, {}),
            "preflight": "warn" if name in PREFLIGHTED else "off",
            "optim": {
                "per_device_train_batch_size": 8 // processes // accumulation,
                "gradient_accumulation_steps": accumulation,
                "num_train_epochs": 2,
                "learning_rate": 1e-3,
            },
        }
        for name, strategy, accumulation, task in SETTINGS
    }
    return running.Job(processes, {"rows": ROWS, "recipes": recipes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("ddp")
    for path in {"bert/AutoModel", *CHECKPOINTS.values()}:
        family, auto_class = path.split("/")
        write_tiny_checkpoint(base / path, family, 0.0, auto_class=getattr(transformers, auto_class))
    # Feature caches of their own: two processes must share the encoding, not find what one process left.
    folders = (base / "one", base / "two")
    jobs = {folder: job(folder, base, processes) for processes, folder in enumerate(folders, start=1)}
    running.fork_ranks(base, SCRIPT, jobs, ACCELERATE_MIXED_PRECISION="no")
    return folders


@pytest.mark.slow
def test_ranks_keep_the_states_of_all_rows_between_them(runs):
    encoded = []
    for folder in runs:
        facts = json.loads((folder / "frozen" / "metrics.json").read_text())["training"]
        assert facts["cache_served_rows"] > 0
        assert facts["cache_recomputed_rows"] == 0
        encoded.append(facts["cache_encoded_rows"])
    assert encoded[0] == encoded[1] > 0, "each process has stored its share"


def noted(folder, rank):
    return json.loads((folder / f"noted-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, *_ in SETTINGS])
def test_two_processes_do_what_one_does(runs, name):
    one, two = (folder / name for folder in runs)
    alone, first, second = noted(one, 0), noted(two, 0), noted(two, 1)
    assert (alone["world_size"], first["world_size"], second["world_size"]) == (1, 2, 2)
    assert [a + b for a, b in zip(first["rows"], second["rows"], strict=True)] == alone["rows"]
    shared = zip(first["rows"], second["rows"], strict=True)
    assert name == "packed" or any(not a or not b for a, b in shared), "no rank was ever idle"
    for found, expected in zip(first["predictions"], alone["predictions"], strict=True):
        for row, expected_row in zip(found, expected, strict=True):
            shift = np.mean(row, axis=0) - np.mean(expected_row, axis=0) if name in NOISY else 0.0
            np.testing.assert_allclose(np.asarray(row) - shift, expected_row, atol=1e-4)
    assert first["predictions"] == second["predictions"]

    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)]
    losses = [[(record["step"], record["loss"]) for record in log if "loss" in record] for log in logs]
    assert len(losses[0]) == (6 if name != "packed" else 2 * -(-len(set(chain(*alone["rows"]))) // 8))
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    for weight in [weight for weight in expected if not weight.endswith(NOISY.get(name, ("key.bias",)))]:
        tolerance = 5e-5 if name in NOISY else 1e-5
        torch.testing.assert_close(found[weight], expected[weight], atol=tolerance, rtol=0.0)
