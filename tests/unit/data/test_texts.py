"""Texts alone, from plain text files and from columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hftransfer.data.texts import Texts, has_column, read_texts
from hftransfer.errors import DataError


def test_a_plain_file_has_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "general.txt"
    path.write_text('\ufeffthe film\n\n  a  "quoted", text \r\nlast', encoding="utf-8")
    found = read_texts(str(path), "--texts", column="whatever")
    assert found.texts == ["the film", 'a  "quoted", text', "last"]
    assert (found.labels, found.total) == (None, 3)
    assert not has_column(str(path), "text")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_of_strings_or_words(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"review": ["one two", " ", "three"], "stars": [1, 2, 3]})
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "jsonl":
        frame.assign(review=frame["review"].str.split()).to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    found = read_texts(str(path), "--train", "review", "stars")
    assert found.texts == ["one two", "three"]
    assert list(map(int, found.labels or [])) == [1, 3]
    assert (found.blank, found.total) == (1, 2)
    assert read_texts(str(path), "--train", "review", "absent").labels is None


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "empty.txt", "no texts"),
        (b"fine\n\xff\xfe\n", "bytes.txt", "line 2: byte 1 of the line is 0xff, which is not UTF-8"),
        (b"text,label\n,1\n", "blank.csv", "no texts"),
        (b"body,label\na,1\n", "other.csv", "no column 'text'; there are 'body', 'label'"),
        (b'{"text": 3}\n', "numbers.jsonl", "column 'text' holds int64, not texts"),
        (b"a", "texts.doc", "cannot tell the format"),
    ],
)
def test_what_holds_no_texts_is_refused(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as found:
        read_texts(str(tmp_path / name), "--texts")
    assert message in str(found.value)
    assert str(found.value).startswith("--texts (")


def test_samples_keep_texts_and_labels_together() -> None:
    texts = Texts("here", [f"text {number}" for number in range(50)], list(range(50)), 0, 50)
    found = texts.sample(10, seed=3)
    assert len(found) == 10
    assert [f"text {label}" for label in found.labels or []] == found.texts
    assert found.texts == texts.sample(10, seed=3).texts != texts.sample(10, seed=4).texts
    assert texts.sample(50, seed=1) is texts


def test_copies_go_whatever_their_case() -> None:
    assert Texts("here", ["A  film", "a film ", "b", "B", "c"]).distinct().texts == ["A  film", "b", "c"]
