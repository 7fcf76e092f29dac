from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hftransfer import Recipe
from hftransfer.errors import TrainingError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.registry import build_task
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training.prepare import derive_max_length, explain_max_length, load_pretrained
from tests.tiny_models import write_tiny_checkpoint


def test_t5_in_fp16_is_refused_and_in_bf16_loads(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "t5", "t5")
    recipe = Recipe(checkpoint=str(folder), task={"pooling": "own"})
    task = TextClassificationTask(TextClassification(), DataSection(), Labels("single_label", ("a", "b")))
    with pytest.raises(TrainingError, match="bf16"):
        load_pretrained(recipe, task, "fp16")
    assert load_pretrained(recipe, task, "bf16").anatomy.num_blocks == 6


WORDY = [{"text": " ".join(["good"] * count), "label": "ab"[count % 2]} for count in (3, 10, 700)]


def derived_length(checkpoint: Path, rows: list[dict[str, str]], **data: Any) -> tuple[int | None, str]:
    recipe, origins = Recipe(checkpoint=str(checkpoint), task={"pooling": "own"}, data=data), dict[str, str]()
    train = Dataset.from_list(rows)
    task = build_task(recipe.task, recipe.data, train)
    loaded = load_pretrained(recipe, task, "no")
    recipe = derive_max_length(recipe, origins, loaded, task, train)
    assert recipe.data.max_length is not None
    explain_max_length(recipe, origins, task.encode(train, loaded.tokenizer, recipe.data.max_length))
    return recipe.data.max_length, origins.get("data.max_length", "")


def test_max_length_comes_from_the_models_limit_and_the_data(checkpoints: Path, tmp_path: Path) -> None:
    reason = "derived: the model's limit; the longest training input has 12 tokens"
    assert derived_length(checkpoints / "bert", WORDY[:2]) == (64, reason)
    length, reason = derived_length(checkpoints / "bert", WORDY)
    assert (length, reason) == (64, "derived: the model's limit; 33.3% of the training examples are longer")
    assert derived_length(checkpoints / "bert", WORDY, max_length=8) == (8, "")
    long = write_tiny_checkpoint(tmp_path / "llama", "llama", max_position_embeddings=2048)
    length, reason = derived_length(long, WORDY)
    told = "derived: holds 100.0% of the training inputs; the model takes 2,048"
    assert (length, reason) == (704, f"{told}; the longest training input has 701 tokens")
    # Two thirds of a percent are longer: not worth a model of ten times the memory.
    length, reason = derived_length(long, [*WORDY[:2] * 75, WORDY[2]])
    assert (length, reason) == (
        512,
        "derived: holds 99.3% of the training inputs; the model takes 2,048; 0.7% of the training examples are longer",
    )
