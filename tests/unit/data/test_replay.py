"""Rows of elsewhere among the training rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from hftransfer import Recipe
from hftransfer.data.load import load_splits, splits_from_objects
from hftransfer.data.replay import draw_rows, replayed_rows
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, MaskedLM
from tests.running import command
from tests.tiny_runs import TASKS, checkpoint_of, tiny_run

OWN = [{"text": f"own {number}", "label": "ab"[number % 2], "person": number // 2} for number in range(40)]
OTHER = [{"text": f"other {number}", "label": "ab"[number % 2]} for number in range(30)]


@pytest.fixture
def other(tmp_path: Path) -> str:
    pd.DataFrame(OTHER).to_csv(tmp_path / "other.csv", index=False)
    return str(tmp_path / "other.csv")


@given(own=some.integers(1, 100_000), share=some.floats(0.001, 0.95))
def test_the_share_is_that_of_all_rows(own: int, share: float) -> None:
    added = replayed_rows(own, share)
    assert added == 1 or abs(added - share * (own + added)) <= 0.5


@given(there=some.integers(1, 60), wanted=some.integers(1, 200), seed=some.integers(0, 5))
def test_no_row_comes_again_before_all_have_come(there: int, wanted: int, seed: int) -> None:
    rows = draw_rows(there, wanted, seed)
    counts = np.bincount(rows, minlength=there)
    assert len(rows) == wanted
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(rows, draw_rows(there, wanted, seed))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_rows_are_mixed_in_after_validation_is_cut_off(other: str, share: float) -> None:
    section = DataSection(replay=other, replay_share=share)
    plain = splits_from_objects(OWN, None, None, DataSection(), seed=3, stratify=True)
    found = splits_from_objects(OWN, None, None, section, seed=3, stratify=True)
    kinds = Counter(text.split()[0] for text in found.train["text"])
    assert found.validation["text"][:] == plain.validation["text"][:]
    assert kinds == {"own": 36, "other": replayed_rows(36, share)}
    assert found.train["text"][:36] == plain.train["text"][:]
    assert found.notes[-1].startswith(f"replay: {kinds['other']} rows")
    assert f"mixed into 36 training rows ({share:.0%} of an epoch)" in found.notes[-1]


def test_groups_and_limits_concern_the_own_rows_alone(other: str) -> None:
    section = DataSection(replay=other, replay_share=0.5, group="person", max_train_examples=10)
    found = splits_from_objects(OWN, None, None, section, seed=3, stratify=True)
    assert Counter(text.split()[0] for text in found.train["text"]) == {"own": 10, "other": 10}


def test_labels_are_of_one_type_and_new_ones_are_told(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["x", "y", "z"], "label": [1, 2, 7]}).to_csv(tmp_path / "numbers.csv", index=False)
    pd.DataFrame({"text": ["m", "n"] * 9, "label": ["1", "2 b"] * 9}).to_csv(tmp_path / "names.csv", index=False)
    section = DataSection(train=str(tmp_path / "names.csv"), replay=str(tmp_path / "numbers.csv"), replay_share=0.2)
    found = load_splits(section, seed=1, stratify=True)
    assert set(found.train["label"]) == {"1", "2 b", "2", "7"}
    assert "replay: brings labels that the training rows lack, which are learnt, too: '" in found.notes[-1]


def test_wrong_columns_are_named(tmp_path: Path, other: str) -> None:
    with pytest.raises(DataError, match=r"data.replay \(.*other.csv\): no column 'review'"):
        splits_from_objects(
            [{"review": "a"}] * 9, None, None, DataSection(text="review", replay=other), seed=1, stratify=False,
            task=MaskedLM(),
        )  # fmt: skip
    rows = [{"text": f"{number}", "label": [number]} for number in range(20)]
    with pytest.raises(DataError, match=r"data.replay \(.*other.csv\): labels are"):
        splits_from_objects(rows, None, None, DataSection(replay=other), seed=1, stratify=False)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    with pytest.raises(ValidationError):
        Recipe(checkpoint="x", data={"replay_share": share})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_on_replayed_rows(
    task: str, checkpoints: Path, language_models: Path, tmp_path: Path
) -> None:
    rows = TASKS[task][2]
    path = tmp_path / "earlier.jsonl"
    pd.DataFrame(rows[:6]).to_json(path, orient="records", lines=True)
    columns = {"replay": str(path), "replay_share": 0.5}
    checkpoint = checkpoint_of(task, checkpoints, language_models)
    run = tiny_run(task, "full_fine_tuning", checkpoint, tmp_path / "run", columns=columns)
    assert run.metrics["training"]["train_examples"] == 2 * len(rows)


def test_the_command_line_refuses_a_missing_file_before_anything(
    tmp_path: Path, other: str, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.train", other, "--data.replay", str(tmp_path / "othr.csv")]
    assert command("run", "text_classification", "--checkpoint", checkpoints / "bert", *data) == 2
    assert "did you mean 'other.csv'?" in capsys.readouterr().err
