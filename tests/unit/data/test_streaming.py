"""Streamed training data: one pass that checks and counts, chunks in the order of the file, bounded memory."""

from __future__ import annotations

import csv
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hftransfer.data import streaming
from hftransfer.data.load import load_splits
from hftransfer.data.streaming import load_stream, stream_from_objects
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_ROWS", 4)


def some_rows(count, labels=("a", "b", "c")):
    return [{"text": f"text {index}", "label": labels[index % len(labels)]} for index in range(count)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def a_section(folder, rows, suffix=".jsonl", validation=None, **settings):
    settings = {"streaming": 10, **settings}
    return DataSection(
        train=write(folder / f"train{suffix}", rows),
        validation=write(folder / f"validation{suffix}", validation or rows[:6]),
        **settings,
    )


def read(section, stratify=True):
    return load_stream(section, seed=1, stratify=stratify)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("labels", [("a", "b"), (3, 1), (0.5, 2.0)])
def test_all_formats_give_the_rows_and_types_of_reading_the_file_whole(suffix, labels, tmp_path):
    section = a_section(tmp_path, some_rows(23, labels), suffix)
    streamed, whole = read(section), load_splits(section, seed=1, stratify=True)
    chunks = list(streamed.stream.chunks(10))
    assert [len(chunk) for chunk in chunks] == [10, 10, 3]
    assert [row for chunk in chunks for row in chunk] == whole.train.to_list()
    assert {str(chunk.features) for chunk in chunks} == {str(whole.train.features)}
    assert streamed.stream.num_rows == 23
    assert streamed.validation.to_list() == whole.validation.to_list()
    assert streamed.validation.features == whole.validation.features


@pytest.mark.parametrize("start", [0, 3, 4, 10, 22])
def test_reading_can_start_anywhere(start, tmp_path):
    stream = read(a_section(tmp_path, some_rows(23))).stream
    texts = [text for chunk in stream.chunks(5, start) for text in chunk["text"]]
    assert texts == [f"text {index}" for index in range(start, 23)]


def test_every_label_is_known_before_training(tmp_path):
    rows = some_rows(30)
    rows[25]["label"], rows[28]["label"] = "rare", "rarer"
    splits = read(a_section(tmp_path, rows))
    assert splits.train["label"][:] == [row["label"] for row in rows[:10]] + ["rare", "rarer"]
    assert any("2 labels first come after the first chunk" in note for note in splits.notes)


def test_labels_in_lists_are_found_too(tmp_path):
    rows = [{"text": f"t{index}", "label": ["a"] if index < 15 else ["a", "b"]} for index in range(20)]
    splits = read(a_section(tmp_path, rows, validation=rows[10:18]))
    assert splits.train["label"][:] == [["a"]] * 10 + [["a", "b"]]


def test_of_fractions_one_late_row_is_enough(tmp_path):
    rows = [{"text": f"t{index}", "label": 1.0 + (index >= 15) * index / 7} for index in range(40)]
    rows[3]["label"] = 2.0
    splits = read(a_section(tmp_path, rows))
    assert len(splits.train) < 20
    assert any(not value.is_integer() for value in splits.train["label"][:])


def test_numbers_of_all_chunks_get_one_type(tmp_path):
    rows = [{"text": f"t{index}", "label": index if index < 12 else index + 0.5} for index in range(20)]
    for suffix in (".csv", ".jsonl"):
        stream = read(a_section(tmp_path, rows, suffix, validation=rows[:4]), stratify=False).stream
        assert {str(chunk.features["label"].dtype) for chunk in stream.chunks(6)} == {"float64"}


def test_class_names_of_a_dataset_are_kept(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    dataset = Dataset.from_list(some_rows(20, (0, 1)), features=features)
    validation = dataset.select(range(4))
    section = DataSection(streaming=6)
    for source in (dataset, dataset.to_iterable_dataset(num_shards=3)):
        splits = stream_from_objects(source, validation, None, section, seed=1, stratify=True)
        chunks = list(splits.stream.chunks(6))
        assert {tuple(chunk.features["label"].names) for chunk in chunks} == {("no", "yes")}
        assert [row for chunk in chunks for row in chunk] == dataset.to_list()


def test_a_named_dataset_is_opened_split_by_split(tmp_path):
    for split, count in (("train", 25), ("validation", 6), ("test", 7)):
        write(tmp_path / f"{split}.jsonl", some_rows(count))
    splits = read(DataSection(name=str(tmp_path), streaming=10))
    assert isinstance(splits.validation, Dataset)
    assert (splits.stream.num_rows, len(splits.validation), len(splits.test)) == (25, 6, 7)
    assert [len(chunk) for chunk in splits.stream.chunks(10)] == [10, 10, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_train_examples": 5}, "data.max_train_examples: needs all rows at once"),
        ({"replay": "general.csv"}, "data.replay: needs all rows at once"),
        ({"group": "text"}, "data.group: needs all rows at once"),
        ({"validation": None}, "no validation data"),
        ({"train": "nowhere.jsonl"}, "no such file"),
        ({"label": "lable"}, "no column 'lable'"),
        ({"name": "x"}, "both train and name"),
        ({"train": None}, "no training data"),
    ],
)
def test_what_cannot_be_streamed_is_refused(change, message, tmp_path):
    section = a_section(tmp_path, some_rows(12)).model_copy(update=change)
    with pytest.raises(DataError) as error:
        read(section)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "bad", "message"),
    [
        (17, {"text": None}, "line 18: no text"),
        (17, {"label": None}, "line 18: no label"),
        (17, {"label": 3}, "line 18: column 'label' is a number, but text"),
        (17, {"text": "a\0b"}, "line 18: a NUL byte"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_trained(row, bad, message, tmp_path):
    rows = some_rows(30)
    rows[row] |= bad
    with pytest.raises(DataError) as error:
        read(a_section(tmp_path, rows))
    assert message in str(error.value)


def test_a_json_array_is_refused(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(some_rows(12)))
    section = a_section(tmp_path, some_rows(12)).model_copy(update={"train": str(tmp_path / "train.json")})
    with pytest.raises(DataError, match="a JSON array cannot be streamed"):
        read(section)


def test_an_identifier_is_no_label(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_LABELS", 10)
    rows = [{"text": "t", "label": f"id{index}"} for index in range(30)]
    with pytest.raises(DataError, match="more than 10 different labels"):
        read(a_section(tmp_path, rows))


def test_data_in_memory_cannot_be_streamed():
    with pytest.raises(DataError, match="in memory already"):
        stream_from_objects(some_rows(4), None, None, DataSection(streaming=True), seed=1, stratify=True)


def test_the_digest_tells_the_data_apart(tmp_path):
    rows = some_rows(30)
    digests = [read(a_section(tmp_path, rows)).stream.digest for _ in range(2)]
    rows[27]["text"] = "changed"
    changed = read(a_section(tmp_path, rows)).stream.digest
    assert digests[0] == digests[1] != changed


def test_the_type_that_another_split_asks_for_holds_in_all_chunks(tmp_path):
    section = a_section(tmp_path, some_rows(25, (0, 1)))
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    validation = Dataset.from_list(some_rows(4, (0, 1)), features=features)
    train = Dataset.from_list(some_rows(25, (0, 1)))
    splits = stream_from_objects(train, validation, None, section, seed=1, stratify=True)
    assert {tuple(chunk.features["label"].names) for chunk in splits.stream.chunks(10)} == {("no", "yes")}


def peak_of(section):
    """The most memory of one first pass and one pass over the chunks, in Python's and Arrow's allocators."""
    pool = pa.default_memory_pool()
    before, highest = pool.bytes_allocated(), 0
    tracemalloc.start()
    stream = read(section).stream
    rows = 0
    for chunk in stream.chunks(section.chunk_examples):
        rows += len(chunk)
        highest = max(highest, pool.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1] + highest
    tracemalloc.stop()
    return rows, peak


@pytest.mark.slow
def test_ten_times_the_rows_take_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_ROWS", 512)
    peaks = {}
    for count in (5_000, 50_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        with (folder / "train.jsonl").open("w") as file:
            file.writelines(
                f'{{"text": "a text of some length, number {row}", "label": "{row % 3}"}}\n' for row in range(count)
            )
        write(folder / "validation.jsonl", [{"text": "t", "label": "1"}])
        section = DataSection(
            train=str(folder / "train.jsonl"),
            validation=str(folder / "validation.jsonl"),
            streaming=1000,
        )
        rows, peaks[count] = peak_of(section)
        assert rows == count
    # What other parts of the process allocate meanwhile is no growth; all texts would be ten times as much.
    assert peaks[50_000] < 1.25 * peaks[5_000] + 500_000, peaks
    # Far less than the texts alone.
    assert peaks[50_000] < 0.5 * (tmp_path / "50000" / "train.jsonl").stat().st_size, peaks
