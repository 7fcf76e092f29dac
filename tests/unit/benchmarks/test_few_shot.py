"""The draws of the few-shot measurement, and the arithmetic of its table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from benchmarks import few_shot


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"text": f"text {at}", "label": ("b", "a", "c")[at % 3]} for at in range(60)]
    pd.DataFrame([*rows, {"text": "Text 0 ", "label": "b"}]).to_parquet(folder / "train.parquet")
    pd.DataFrame(rows[:9]).to_parquet(folder / "test.parquet")
    return folder


def test_a_draw_has_so_many_of_each_class_and_no_test_text(source: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 2, 1):
        paths = few_shot.draw(source, 5, seed, tmp_path)
        train, test = pd.read_parquet(paths["train"]), pd.read_parquet(paths["test"])
        assert train["label"].value_counts().to_dict() == {0: 5, 1: 5, 2: 5}
        assert not set(train["text"].str.lower().str.strip()) & set(test["text"])
        assert test["label"].tolist() == [1, 0, 2] * 3
        drawn.append(train["text"].tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def record(contestant: str, draw: int, correct: int, training: float) -> dict[str, object]:
    numbers = {"correct": correct, "total": 100, "training": training, "processor": training, "whole": training + 1}
    same = {"data_set": "d", "shots": 8, "checkpoint": "c", "settings": {}}
    return {"contestant": contestant, "draw": draw, **same, **numbers}


def test_the_table_compares_the_same_draws_alone() -> None:
    records = [
        *(record("ours", draw, 80 + draw, 2.0) for draw in range(4)),
        *(record("setfit", draw, 78 - draw, 6.0 + draw) for draw in range(3)),
    ]
    (row,) = few_shot.rows_of(records)
    gains = [2.0, 4.0, 6.0]
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    assert row[:5] == ["c", "d", "8", "defaults", "3"]
    assert row[5:8] == ["81.0", "77.0", f"+4.0 ({4 - half:+.1f} to {4 + half:+.1f})"]
    assert row[8:] == ["2 s", "7 s", "3.5 (3.0 to 4.0)", "3.5 (3.0 to 4.0)", "2.7 (2.3 to 3.0)"]


def test_one_draw_has_no_interval() -> None:
    (row,) = few_shot.rows_of([record("ours", 0, 80, 2.0), record("setfit", 0, 78, 6.0)])
    assert row[7] == "+2.0"


def test_other_settings_have_a_row_of_their_own() -> None:
    other = {**record("ours", 0, 70, 1.0), "settings": {"seed": 1}}
    rows = few_shot.rows_of([record("ours", 0, 80, 2.0), record("ours", 1, 82, 4.0), other])
    assert rows == [
        ["c", "d", "8", '`{"seed": 1}`', "1", "70.0", "-", "-", "1 s", *"----"],
        ["c", "d", "8", "defaults", "2", "81.0", "-", "-", "3 s", *"----"],
    ]
