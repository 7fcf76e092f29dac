"""Tables of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from hftransfer.inference import _series, _write, predict_file
from tests.tiny_runs import tiny_run


def test_places_stay_whole_numbers_where_some_are_missing(tmp_path: Path) -> None:
    columns = {"start": [5, None], "score": [0.5, None], "prediction": ["a", None]}
    frame = pd.DataFrame({"text": ["x", "y"]}).assign(**{name: _series(values) for name, values in columns.items()})
    for ending in ("jsonl", "csv", "parquet"):
        _write(frame, tmp_path / f"out.{ending}")
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == {"text": "x", "start": 5, "score": 0.5, "prediction": "a"}
    assert isinstance(first["start"], int)
    assert (second["start"], second["score"]) == (None, None)
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["x,5,0.5,a", "y,,,"]
    assert pd.read_parquet(tmp_path / "out.parquet")["start"].tolist() == [5, pd.NA]


def test_the_users_own_columns_stay_as_they_are(checkpoints: Path, tmp_path: Path) -> None:
    run = tiny_run("text_classification", "feature_extraction", checkpoints / "bert", tmp_path / "run", preflight="off")
    large = 9007199254740993
    rows = [{"id": large, "text": "a film"}, {"id": None, "text": "b"}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for ending in ("jsonl", "csv", "parquet"):
        given = {"text": "text", "text_pair": None, "batch_size": 2}
        predict_file(run.folder, str(source), tmp_path / f"out.{ending}", **given)
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [large, None]
    assert [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()] == ["id", str(large), ""]
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [large, None]


def test_dates_stay_dates(tmp_path: Path) -> None:
    _write(pd.DataFrame({"at": pd.to_datetime(["2024-05-06"])}), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["at"].startswith("2024-05-06")
