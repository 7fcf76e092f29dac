"""What a training leaves in the memory of its process."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from hftransfer import Recipe, finetune, finetuning
from tests.tiny_runs import TASKS


@pytest.mark.usefixtures("bf16")
def test_the_model_does_not_outlive_its_run(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []

    def remembered(*given: object, **more: object) -> object:
        prepared = prepare(*given, **more)
        models.append(weakref.ref(prepared.loaded.model))
        return prepared

    prepare = finetuning.prepare_all
    monkeypatch.setattr(finetuning, "prepare_all", remembered)
    rows = TASKS["text_classification"][2]
    recipe = Recipe(checkpoint=str(checkpoints / "bert"), optim={"max_steps": 2}, output_dir=str(tmp_path / "run"))
    gc.disable()
    try:
        finetune(recipe, train=rows, validation=rows)
    finally:
        gc.enable()
    (model,) = models
    assert model() is None
