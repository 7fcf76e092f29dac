from __future__ import annotations

from pathlib import Path

import pytest

from hftransfer import Recipe
from hftransfer.errors import TrainingError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training.prepare import load_pretrained
from tests.tiny_models import write_tiny_checkpoint


def test_t5_in_fp16_is_refused_and_in_bf16_loads(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "t5", "t5")
    recipe = Recipe(checkpoint=str(folder), task={"pooling": "own"})
    task = TextClassificationTask(TextClassification(), DataSection(), Labels("single_label", ("a", "b")))
    with pytest.raises(TrainingError, match="bf16"):
        load_pretrained(recipe, task, "fp16")
    assert load_pretrained(recipe, task, "bf16").anatomy.num_blocks == 6
