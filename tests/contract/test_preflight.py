"""Preflight of every family: what is right is not complained of, in whichever stages and with whichever blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hftransfer import Recipe
from hftransfer.finetuning import assemble
from hftransfer.preflight.checks import preflight
from tests.running import write_rows
from tests.tiny_models import FAMILIES, WORDS

STRATEGIES: tuple[dict[str, Any], ...] = ({"type": "gradual_unfreezing", "stages": 3}, {"type": "lora", "r": 2})
MODEL_CODES = {"no_gradient", "frozen_learns", "not_in_optimizer", "frozen_in_optimizer", "not_finite", "zero_gradient"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    made = [
        {"text": " ".join(WORDS[(row * step + step) % 60] for step in (3, 7, 11, 13)), "label": ("no", "yes")[row % 2]}
        for row in range(24)
    ]
    return {
        name: str(write_rows(folder / f"{name}.jsonl", part))
        for name, part in (("train", made[:16]), ("validation", made[16:]))
    }


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["type"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_family_is_complained_of(
    family: str, strategy: dict[str, Any], checkpoints: Path, data: dict[str, str], tmp_path: Path
) -> None:
    recipe = Recipe(
        checkpoint=str(checkpoints / family),
        data=data,
        strategy=strategy,
        optim={"per_device_train_batch_size": 8},
        output_dir=str(tmp_path / "run"),
    )
    report = preflight(assemble(recipe), thorough=False)
    codes = {finding.code for finding in report.findings}
    assert report.of("error") == []
    assert not MODEL_CODES & codes
    assert {"learns_a_batch", "does_not_learn"} & codes
