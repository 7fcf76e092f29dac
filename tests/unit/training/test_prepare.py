from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hftransfer import Recipe
from hftransfer.errors import DataError, TrainingError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.registry import build_task
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training import prepare
from hftransfer.training.defaults import resolve
from hftransfer.training.prepare import (
    derive_max_length,
    derive_schedule,
    explain_max_length,
    load_data,
    load_pretrained,
)
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


def test_a_sample_for_max_length_is_spread_over_the_data_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "SAMPLED_EXAMPLES", 50)
    long = write_tiny_checkpoint(tmp_path / "llama", "llama", max_position_embeddings=2048)
    # Sorted by length: the first rows say nothing of the last ones.
    rows = [{**WORDY[0 if number < 150 else 2], "label": "ab"[number % 2]} for number in range(200)]
    length, reason = derived_length(long, rows)
    told = "derived: holds 100.0% of the training inputs in a sample of 50 examples; the model takes 2,048"
    assert (length, reason) == (704, f"{told}; the longest training input has 701 tokens")
    length, reason = derived_length(long, rows[:50])
    assert "holds 100.0% of the training inputs; the model takes 2,048" in reason
    # A stream's first rows are all that is looked at.
    length, reason = derived_length(long, rows[:50], streaming=True)
    assert "inputs in a sample of 50 examples;" in reason
    assert reason.endswith("the longest training input has 4 tokens (of the 50 that were read first)")


def test_few_examples_change_the_schedule_with_a_reason_and_no_more_evaluations() -> None:
    recipe, origins = resolve(Recipe(checkpoint="x", strategy="full_fine_tuning"))
    found = derive_schedule(recipe, origins, 45, num_processes=1)
    optim = found.optim
    assert (optim.num_train_epochs, optim.per_device_train_batch_size, found.evaluation.every) == (50, 8, 60)
    for name in ("optim.num_train_epochs", "optim.per_device_train_batch_size"):
        assert origins[name] == "derived: 45 examples would make few steps (docs/strategies.md)"
    assert origins["evaluation.every"].startswith("derived: as often as")
    again = derive_schedule(found, origins, 45, num_processes=1)
    assert again == found


@pytest.mark.parametrize(("examples", "processes", "batch"), [(3000, 1, 32), (1000, 1, 16), (8000, 8, 16)])
def test_an_epoch_is_evaluated_where_epochs_are_the_usual_ones(examples: int, processes: int, batch: int) -> None:
    recipe, origins = resolve(Recipe(checkpoint="x", strategy="full_fine_tuning"))
    found = derive_schedule(recipe, origins, examples, processes)
    assert (found.optim.num_train_epochs, found.optim.per_device_train_batch_size) == (5, batch)
    assert found.evaluation.every is None


def test_evaluations_that_were_asked_for_stay() -> None:
    recipe, origins = resolve(Recipe(checkpoint="x", evaluation={"every": 7}))
    assert derive_schedule(recipe, origins, 20, num_processes=1).evaluation.every == 7


def test_files_of_the_recipe_are_read_for_what_is_not_passed(tmp_path: Path) -> None:
    for name in ("validation", "test"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\nof {name},a\nmore {name},b\n", encoding="utf-8")
    data = {name: str(tmp_path / f"{name}.csv") for name in ("validation", "test")}
    recipe = Recipe(checkpoint="c", data=data)
    rows = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(20)]
    found = load_data(recipe, rows, None, [{"text": "passed", "label": "a"}])
    assert len(found.train) == 20
    assert found.validation["text"][:] == ["of validation", "more validation"]
    assert found.test is not None
    assert found.test["text"][:] == ["passed"]
    with pytest.raises(DataError, match=r"data\.validation"):
        load_data(Recipe(checkpoint="c", data={"validation": str(tmp_path / "absent.csv")}), rows, None, None)
