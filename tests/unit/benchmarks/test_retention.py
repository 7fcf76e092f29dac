"""The table of remedies, made of lines as they are written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import retention

CURVE = [
    {"share": 0.0, "retained": 1.0, "general": 1.0, "validation": 0.2, "test": 0.1},
    {"share": 0.5, "retained": 0.96, "general": 0.8, "validation": 0.7, "test": 0.6},
    {"share": 1.0, "retained": 0.9, "general": 0.5, "validation": 0.8, "test": 0.75},
]


def line(remedy: str, seed: int, score: float, **more) -> dict:
    cell = f"trec6/{remedy}/{seed}"
    return {"cell": cell, "examples": 1000, "score": score, "retained": 0.9, "general": 0.5, **more}


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    lines = [line("full", seed, 0.7 + seed / 100, curve=CURVE) for seed in (1, 2)] + [line("l2_sp:30", 1, 0.9)]
    out, page = tmp_path / "lines.jsonl", tmp_path / "page.md"
    out.write_text("".join(json.dumps(one) + "\n" for one in lines))
    page.write_text("before\n<!-- retention:begin -->\nold\n<!-- retention:end -->\nafter\n")
    retention.table(argparse.Namespace(out=str(out), examples=1000, threads=1, write=str(page)))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert "Replay trains on labelled rows of sst2" in text
    assert "by the mean of the probes" in text
    # The best score first.
    assert rows[1] == "| L2-SP (`optim.retain: l2_sp`), strength 30 | 0.900 | 0.900 | 0.500 | 1 | 1 of 1 | 0 of 1 |"
    assert rows[2].startswith("| full fine-tuning (best evaluation) | 0.715 (0.710 to 0.720) |")
    assert rows[2].endswith("| 2 | 0 of 2 | 0 of 2 |")
    assert any(row.startswith("| soften full, `--retain 0.95` | 0.600 (0.600 to 0.600) | 0.960") for row in rows)


def test_the_softened_point_is_chosen_on_validation_among_what_retains_enough() -> None:
    found = line("full", 1, 0.7, curve=CURVE)
    assert retention.softened(found, 0.95, None) == (0.6, 0.96, 0.8)
    assert retention.softened(found, 0.0, None) == (0.75, 0.9, 0.5)
    assert retention.softened(found, None, 0.4)[0] == 0.6


def test_replayed_classes_do_not_count() -> None:
    scores = {"f1_macro": 0.4, "f1/a": 0.8, "f1/b": 0.6, "f1/sst2 positive": 0.0}
    assert retention.own_score(scores, "f1_macro") == pytest.approx(0.7)
    assert retention.own_score({"f1_macro": 0.7, "f1/a": 0.8, "f1/b": 0.6}, "f1_macro") == 0.7


def test_rows_are_the_same_for_every_cell_and_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for split, count in (("train", 2000), ("test", 20)):
        rows = [{"text": f"{split} {at}", "label": "x"} for at in range(count)]
        pd.DataFrame(rows).to_parquet(source / f"{split}.parquet")
    first = retention.write_data(source, tmp_path / "a", 1000)
    second = retention.write_data(source, tmp_path / "b", 1000)
    frames = {split: pd.read_parquet(path) for split, path in first.items()}
    assert {split: len(frame) for split, frame in frames.items()} == {"train": 1000, "validation": 500, "test": 20}
    assert not set(frames["train"]["text"]) & set(frames["validation"]["text"])
    assert all(frame.equals(pd.read_parquet(second[split])) for split, frame in frames.items())
