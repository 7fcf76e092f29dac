"""Tables of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hftransfer.inference import _series, _write


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
