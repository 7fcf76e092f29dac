"""Tables of predictions."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from hftransfer import Recipe, Run, finetune, predict
from hftransfer.errors import DataError
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


@pytest.fixture(scope="module")
def single(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("single") / "run"
    return tiny_run("text_classification", "feature_extraction", checkpoints / "bert", folder, preflight="off")


def test_texts_may_be_a_series(single: Run) -> None:
    texts = ["a film", "the dog"]
    assert predict(single, pd.Series(texts)) == predict(single, np.asarray(texts)) == predict(single, texts)
    with pytest.raises(DataError, match="not a list of strings"):
        predict(single, ["a", ["b", "c"]])


def test_what_cannot_be_written_is_said_and_leaves_nothing(
    single: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_text("text,prediction\na film,x\n")
    given = {"text": "text", "text_pair": None}
    with pytest.raises(DataError, match="batch_size: 0 rows are no batch"):
        predict_file(single, str(tmp_path / "in.csv"), tmp_path / "out.csv", batch_size=0, **given)
    with pytest.raises(DataError, match=r"has a column 'prediction' already"):
        predict_file(single, str(tmp_path / "in.csv"), tmp_path / "out.csv", batch_size=2, **given)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    with pytest.raises(DataError, match="not writable"):
        predict_file(single, str(tmp_path / "in.csv"), tmp_path / "out.csv", batch_size=2, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def refused(**_: Any) -> Any:
    raise PermissionError(13, "Permission denied")


def test_a_model_of_pairs_reads_pairs_and_one_of_texts_does_not(single: Run, checkpoints: Path, tmp_path: Path) -> None:
    rows = [{"text": "a film", "text_pair": "b"}]
    with pytest.raises(DataError, match="text_pair: the model reads single texts"):
        predict(single, data=rows, text_pair="text_pair")
    two = [{"text": "film", "other": "dog", "label": at % 2} for at in range(12)]
    recipe = {"data": {"text_pair": "other"}, "strategy": {"type": "feature_extraction"}, "optim": {"max_steps": 1}}
    pairs = finetune(
        Recipe(checkpoint=str(checkpoints / "bert"), output_dir=str(tmp_path / "pairs"), preflight="off", **recipe),
        train=two,
        validation=two,
    )
    assert len(predict(pairs, data=two, text_pair="other")) == 12
    with pytest.raises(DataError, match="text_pair: the model reads pairs of texts"):
        predict(pairs, ["film"])
