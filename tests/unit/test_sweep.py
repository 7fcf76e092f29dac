"""A sweep's data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hftransfer import Recipe
from hftransfer.sweep import start
from hftransfer.sweep_space import Varied
from hftransfer.training.prepare import load_data

pytest.importorskip("optuna")

RATES = Varied("optim.learning_rate", choices=(1e-3, 1e-2))


def recipe(checkpoints: Path, folder: Path, **data: object) -> Recipe:
    for name, author in (("train", "a"), ("validation", "b"), ("earlier", None)):
        rows = [
            {"text": f"the {name} film {at} was {'good for him' if at % 3 else 'bad'}", "label": "xy"[at % 2]}
            | ({} if author is None else {"author": f"{author}{at}"})
            for at in range(24)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"), "max_length": 16}
    return Recipe(
        checkpoint=str(checkpoints / "bert"),
        strategy="feature_extraction",
        data={**given, **data},
        output_dir=str(folder / "sweep"),
    )


@pytest.mark.parametrize("group", [None, "author"])
def test_replayed_rows_are_mixed_in_once(group: str | None, checkpoints: Path, tmp_path: Path) -> None:
    replay = {"replay": str(tmp_path / "earlier.jsonl"), "replay_share": 0.5, "group": group}
    sweep = start(recipe(checkpoints, tmp_path, **replay), [RATES])
    assert len(sweep.prepared.data.splits.train) == 48
    assert len(sweep.splits.train) == 24, "every trial mixes them in for itself"


def test_counterfactuals_are_added_once(checkpoints: Path, tmp_path: Path) -> None:
    own = recipe(checkpoints, tmp_path, counterfactuals="builtin")
    sweep = start(own, [RATES])
    expected = load_data(own, None, None, None).train["text"][:]
    assert len(expected) > 24
    assert sweep.prepared.data.splits.train["text"][:] == expected
