"""What a small file may expand to, how long a record may be, and that the memory of finding out is bounded."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftransfer.data import bounded, json_array, records
from hftransfer.data.bounded import BoundedText
from hftransfer.data.json_array import array_records
from hftransfer.data.readers import read_table, row_locator, stream_tables
from hftransfer.errors import DataError

LONG = "x" * 5000
MIB = 1 << 20


@pytest.fixture
def short(monkeypatch):
    """Limits that small files exceed."""
    monkeypatch.setattr(bounded, "LONGEST_RECORD", 1000)
    monkeypatch.setattr(bounded, "LEAST_EXPLOSION", MIB)


def written(path, content):
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.csv", f"text,label\na,b\n{LONG},c\n", "line 3"),
        ("a.csv", f"text,label\na,b\nd,e\n{LONG}", "line 4"),
        ("a.csv", 'text,label\na,b\n"' + "xx\n" * 2000, "line 3"),
        ("a.csv", 'text,label\n\n"' + '""\n",b\n"' * 400 + 'x\n",y\n', None),
        ("a.tsv", "text\tlabel\n" + '"\n"\t' * 2000, "line 2"),
        ("a.csv", f"{LONG},label\na,b\n", "line 1"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "' + LONG + '"}\n', "line 3"),
        ("a.jsonl", '{"text": ' + "[" * 5000, "line 1"),
        ("a.json", '[{"text": "a"},\n {"text": "' + LONG + '"}]', "line 2"),
        ("a.json", '{"version": "' + LONG, "line 1"),
        ("a.json", '[\n{"text": ' + "[[1], " * 1000, "line 2"),
    ],
)
def test_a_huge_record_is_refused_with_its_line(short, monkeypatch, tmp_path, name, content, where, packed):
    monkeypatch.setattr(json_array, "PIECE", 300)
    path = written(tmp_path / f"{name}{packed}", content)
    if where is None:
        assert read_table(path, "here").num_rows == 401
        return
    with pytest.raises(DataError) as caught:
        read_table(path, "here")
    assert str(caught.value).startswith(f"here, {where}: a record of more than 1,000 characters; ")
    assert "\n" not in str(caught.value)


def test_many_records_are_not_one(short, tmp_path):
    lines = [f'"a\n{row}",b' for row in range(2000)]
    table = read_table(written(tmp_path / "a.csv", "text,label\n" + "\n".join(lines)), "here")
    assert table.num_rows == 2000
    assert row_locator(tmp_path / "a.csv")(1999) == "line 4000"
    rows = [{"text": "a" * 900}] * 20
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        assert read_table(written(tmp_path / name, content), "here").to_pylist() == rows


@pytest.mark.parametrize(
    ("name", "start", "repeated"),
    [
        ("a.csv.gz", "text,label\n", "a,b\n"),
        ("a.csv.gz", "text,label\n", "\n"),
        ("a.jsonl.gz", "", "\n"),
        ("a.json.gz", "[", "{},"),
        ("a.json.gz", "[", " "),
        ("a.json.gz", '{"other": [', "1,"),
    ],
)
def test_a_packed_file_that_goes_on_and_on_is_refused(short, monkeypatch, tmp_path, name, start, repeated):
    monkeypatch.setattr(bounded, "LONGEST_RECORD", 4 * MIB)
    path = written(tmp_path / name, start + repeated * (3 * MIB // len(repeated)))
    with pytest.raises(DataError, match=r"^here: the file expands to more than \d+ MiB, over 100 times its size"):
        read_table(path, "here")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_huge_cell_takes_the_memory_of_the_limit_and_not_its_own(monkeypatch, tmp_path, name):
    monkeypatch.setattr(bounded, "LONGEST_RECORD", 2 * MIB)
    start = {"a.csv.gz": "text\n", "a.jsonl.gz": '{"text": "', "a.json.gz": '[{"text": "'}[name]
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        file.write(start.encode())
        for _ in range(60):
            file.write(b"x" * MIB)
    tracemalloc.start()
    with pytest.raises(DataError, match="a record of more than"):
        read_table(tmp_path / name, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * MIB


def test_large_records_make_small_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "CHUNK_CHARACTERS", 10_000)
    rows = [{"text": "a" * 3000}] * 10
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    tables = [table.num_rows for table in stream_tables(path, "here", None, 1000)]
    assert max(tables) < 6
    assert sum(tables) == 10
    assert read_table(path, "here").to_pylist() == rows


def repeated(kind):
    """Sixty thousand references to one entry of 100,000 letters."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 60_000, pa.int32()), pa.array(["x" * 100_000]))
    if kind == "text":
        return text
    words = pa.ListArray.from_arrays(pa.array(range(0, 60_001, 2), pa.int32()), text)
    return words if kind == "list" else pa.StructArray.from_arrays([words], ["text"])


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("kind", ["text", "list", "struct"])
def test_a_dictionary_bomb_is_refused_with_little_memory(tmp_path, kind, declared):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": repeated(kind)}), path, store_schema=declared)
    assert path.stat().st_size < MIB
    before = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(DataError, match=r"^here: the file expands to more than 512 MiB, over 100 times its size"):
            read_table(path, "here", ["text"])
        assert counted.max_memory() < (512 + 100) * MIB
        assert sum(table.num_rows for table in stream_tables(path, "here", ["other"], 10)) == 0
    finally:
        pa.set_memory_pool(before)


def test_packed_pages_are_refused_before_they_are_unpacked(short, tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["x" * 900] * 5000, "label": [1] * 5000})
    pa.parquet.write_table(table, path, use_dictionary=False, compression="zstd")
    with pytest.raises(DataError, match="expands to more than 1 MiB"):
        read_table(path, "here")
    # What is not asked for is not unpacked.
    assert read_table(path, "here", ["label"]).num_rows == 5000


def test_a_long_row_of_parquet_is_refused_with_its_number(short, tmp_path):
    path = tmp_path / "a.parquet"
    texts = ["a", "b" * 900, LONG, "c"]
    pa.parquet.write_table(pa.table({"text": texts}), path)
    with pytest.raises(DataError, match=r"^here, row 3: a record of more than 1,000 characters"):
        read_table(path, "here")


def test_parquet_in_pieces_is_parquet_whole(short, tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "text": [f"{row} " * (row % 50) if row % 7 else None for row in range(500)],
            "tags": [["a", f"b{row % 3}"][: row % 3] if row % 11 else None for row in range(500)],
            "answers": [{"text": [str(row)], "at": [row]} for row in range(500)],
            "kind": pa.array(["x", "y"] * 250).dictionary_encode(),
            "n": list(range(500)),
        }
    )
    pa.parquet.write_table(table, path, row_group_size=130)
    read = read_table(path, "here")
    assert read.to_pylist() == table.to_pylist()
    assert pa.types.is_string(read.schema.field("kind").type)
    assert max(part.num_rows for part in stream_tables(path, "here", None, 40)) <= 40


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "a", "b"]), inner, max_size=3),
    max_leaves=8,
)


def expected(text):
    """What the standard library makes of a whole document."""
    try:
        content = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        return f"here, line {error.lineno}: not valid JSON: {error.msg} at column {error.colno}"
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    return content if isinstance(content, list) else "here: not a list of records"


def found(text, piece):
    stream = io.BytesIO(text.encode())
    with mock.patch.object(json_array, "PIECE", piece), mock.patch.object(bounded, "open_binary", return_value=stream):
        try:
            return list(array_records(BoundedText(JSON, "here"), dict))
        except DataError as error:
            return str(error).partition(";")[0]


JSON = Path("a.json")


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(DOCUMENTS, st.sampled_from([None, 1]), st.integers(1, 40), st.data())
def test_piece_by_piece_json_is_what_the_standard_library_reads(document, indent, piece, data):
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    assert found(text, piece) == expected(text)
    # The same with a fault in it.
    at = data.draw(st.integers(0, len(text)))
    spoilt = (
        text[:at] + data.draw(st.sampled_from(["", ",", "]", "}", '"', "{", "x", "\n", "\\", " 1"])) + text[at + 1 :]
    )
    spoilt = spoilt.encode("utf-8", "replace").decode()
    assert found(spoilt, piece) == expected(spoilt)
