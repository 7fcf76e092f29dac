"""The texts that contestants get."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.data import enlarge, write_splits


def frame(count: int, word: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "text": [f"{word} {index} text of some words" for index in range(count)],
            "label": ["no", "yes"] * (count // 2),
        }
    )


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    train = pd.concat([frame(40, "film"), frame(4, "FILM")])
    for name, part in {"train": train, "validation": frame(20, "play"), "test": frame(8, "book")}.items():
        part.to_parquet(folder / f"{name}.parquet")
    return folder


def test_splits_have_the_asked_sizes_and_numbered_labels(source, tmp_path):
    paths = write_splits(source, tmp_path / "made", 30, 5)
    found = {name: pd.read_parquet(path) for name, path in paths.items()}
    assert {name: len(part) for name, part in found.items()} == {"train": 30, "validation": 10, "test": 5}
    assert set(found["train"]["label"]) == {0, 1}
    assert not set(found["train"]["text"]) & set(found["validation"]["text"])
    assert found["train"]["text"].str.lower().is_unique


def test_splits_are_the_same_every_time(source, tmp_path):
    first, second = (write_splits(source, tmp_path / name, 30) for name in ("a", "b"))
    for name in first:
        pd.testing.assert_frame_equal(pd.read_parquet(first[name]), pd.read_parquet(second[name]))


def test_more_texts_than_there_are_differ_by_one_word():
    made = enlarge(frame(10, "film"), 100, 1)
    assert len(made) == 100
    assert made["text"].str.lower().is_unique
    assert made["text"].str.split().str.len().eq(6).all()
    for position in range(10, 100):
        assert made["label"][position] in ("no", "yes")


def test_a_handful_of_words_cannot_be_enlarged_for_ever():
    with pytest.raises(ValueError, match="too few"):
        enlarge(pd.DataFrame({"text": ["a", "b"], "label": [0, 1]}), 50, 1)


def test_without_validation_data_a_part_of_train_is_cut_off(source, tmp_path):
    (source / "validation.parquet").unlink()
    found = {name: pd.read_parquet(path) for name, path in write_splits(source, tmp_path / "made", 20).items()}
    assert not set(found["train"]["text"]) & set(found["validation"]["text"])
