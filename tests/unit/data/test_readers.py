"""Files: what is good loads unchanged, what is broken gives one line with file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftransfer.data import readers
from hftransfer.data.readers import read_table, row_locator
from hftransfer.errors import DataError

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(st.tuples(TEXT, st.sampled_from(["NA", "null", "1", "007", "1e5", "nan", ""])), min_size=1, max_size=8)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def message_of(path):
    """What reading the file complains about; any error that is not the user's is raised."""
    try:
        read_table(path, "here")
    except DataError as error:
        return str(error)
    return ""


BROKEN = [
    ("a.csv", "", "the file is empty"),
    ("a.csv", "text,label\none,a\ntwo,b,c\n", r"line 3: 3 cells where the header has 2"),
    ("a.csv", "text,label\none,a\n\ntwo\n", r"line 4: 1 cells where the header has 2"),
    ("a.csv", 'text,label\n"one\ntwo",a\nthree\n', r"line 4: 1 cells"),
    ("a.csv", 'text,label\nok,a\n"one,a\ntwo,b\nthree,c\n', r"line 3: a quote that opens here is never closed"),
    ("a.csv", 'text,label\n"one" more,a\n', r"line 2: a stray quote"),
    ("a.csv", "text,text,label\na,b,c\n", "two columns have the name 'text'"),
    ("a.csv", b"text,label\nfine,a\ncaf\xe9,b\n", r"line 3: byte 4 of the line is 0xe9, which is not UTF-8"),
    ("a.csv", "text,label\none,a\n".encode("utf-16"), r"line 1: byte 1 .*UTF-16"),
    ("a.tsv", "text\tlabel\none\ta\ntwo\n", r"line 3: 1 cells"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": }\n', r"line 2: not valid JSON"),
    ("a.jsonl", '{"text": "a"}\n\n["b"]\n', r"line 3: a list of text where a record is wanted"),
    ("a.jsonl", '{"text": "a"}\nnull\n', r"line 2: null where a record"),
    ("a.jsonl", '[{"text": "a"}]\n', r"name the file \.json"),
    (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n',
        r"line 2: column 'label' is text, but a number",
    ),
    ("a.jsonl", '{"text": "a", "label": true}\n\n{"text": "b", "label": 1}\n', r"line 3: column 'label' is a number"),
    ("a.jsonl", '{"label": [1]}\n{"label": []}\n{"label": ["x"]}\n', r"line 3: column 'label' is a list of text"),
    ("a.jsonl", '{"label": ["x", 1]}\n', r"line 1: column 'label' holds a value that cannot be stored"),
    ("a.jsonl", '{"text": "a", "text": "b"}\n', r"line 1: the key 'text' comes twice"),
    ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', r"line 2: column 'text' holds a value that cannot be stored"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"line 2: byte 14"),
    ("a.jsonl", '{"label": 1}\n{"label": 99999999999999999999999}\n', r"line 2: column 'label' holds a value"),
    ("a.json", '{"text": "a"}\n{"text": "b"}\n', r"line 2: not valid JSON: Extra data.*\.jsonl"),
    ("a.json", '{"text": ["a"]}', "not a list of records"),
    ("a.json", '[{"text": "a"}, 5]', r"row 2: a number where a record is wanted"),
    ("a.json", '[{"text": "a"}, {"text": 5}]', r"row 2: column 'text' is a number, but text"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.json", '[{"text": ' + "[" * 80 + "]" * 80 + "}]", "row 1: column 'text' .* more than 20 levels deep"),
    ("a.jsonl", '{"text": "a"}\n{"text": ' + '{"a":' * 900 + "1" + "}" * 901, "line 2: column 'text' .* levels deep"),
    ("a.jsonl", "[" * 900 + "]" * 900, "name the file .json"),
    ("a.jsonl", '{"text": "a"}\n' + "[" * 900 + "]" * 900, "line 2: a list of .* where a record is wanted"),
    ("a.json", "[" + "9" * 5000 + "]", "not usable JSON"),
    ("a.json", "", "line 1: not valid JSON"),
    ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
    ("a.csv.gz", gzip.compress(b"text,label\n" + b"one,a\n" * 5000, mtime=0)[:60], "cannot be read"),
    ("a.csv.gz", b"text,label\none,a\n", "cannot be read"),
    ("a.csv.xz", b"text,label\none,a\n", "cannot be read"),
    ("a.csv.bz2", b"text,label\none,a\n", "cannot be read"),
    ("a.xlsx", b"PK", "cannot tell the format of 'a.xlsx'"),
    ("a.parquet.gz", b"PK", "cannot tell the format"),
    ("noending", b"x", "cannot tell the format"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named_on_one_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path, f"data.train ({name})")
    assert str(caught.value).startswith(f"data.train ({name})")
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(ROWS, st.sampled_from([".csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.xz", ".jsonl", ".json"]))
def test_every_text_comes_back_as_it_was_written(tmp_path, rows, ending):
    buffer = io.StringIO(newline="")
    if ending.startswith((".csv", ".tsv")):
        writer = csv.writer(buffer, delimiter="\t" if ending == ".tsv" else ",", quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    elif ending == ".jsonl":
        buffer.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    else:
        json.dump([{"text": text, "label": label} for text, label in rows], buffer)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(ending[-3:], bytes)
    if ending == ".csv.bz2":
        pack = bz2.compress
    table = read_table(write(tmp_path, f"a{ending}", pack(buffer.getvalue().encode())), "here")
    assert list(zip(*(table.column(name).to_pylist() for name in ("text", "label")), strict=True)) == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=80), st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz"]))
def test_any_bytes_load_or_give_a_data_error(tmp_path, content, ending):
    path = write(tmp_path, f"any{ending}", content)
    message = message_of(path)
    assert "\n" not in message
    assert message.startswith("here") or not message


def test_any_bytes_after_a_good_start_load_or_give_a_data_error(tmp_path):
    good = b'text,label\n"a ""b""\n c",1\nd,2\n'
    for at in range(len(good)):
        for byte in (b'"', b",", b"\n", b"\0", b"\xff", b"\r"):
            message = message_of(write(tmp_path, "a.csv", good[:at] + byte + good[at + 1 :]))
            assert message.startswith("here") or not message


def test_the_line_of_a_row_counts_the_header_blank_lines_and_line_breaks_in_cells(tmp_path):
    delimited = row_locator(write(tmp_path, "a.csv", '\ntext,label\n"a\nb\nc",1\n\nd,2\r\ne,3\n'))
    assert [delimited(row) for row in range(3)] == ["line 3", "line 7", "line 8"]
    lines = row_locator(write(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert [lines(row) for row in range(2)] == ["line 1", "line 3"]
    assert row_locator(tmp_path / "a.parquet")(0) == "row 1"


def test_byte_order_marks_and_long_cells_are_fine(tmp_path):
    limit = csv.field_size_limit()
    table = read_table(write(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\n" + b"x" * 200_000 + b",a\n"), "here")
    assert table.column_names == ["text", "label"]
    assert len(table.column("text")[0].as_py()) == 200_000
    assert csv.field_size_limit() == limit


def test_only_wanted_columns_are_read(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a", "other": 1}\n{"text": "b", "other": "mixed"}\n')
    assert read_table(path, "here", ["text", "label"]).column_names == ["text"]
    pd.DataFrame({"text": ["a"], "label": [1], "other": [2]}).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", "here", ["text", "label"]).column_names == ["text", "label"]


def test_json_with_a_data_key_nan_and_absent_keys(tmp_path):
    path = write(
        tmp_path,
        "a.json",
        '{"version": 1, "data": [{"text": "a", "score": NaN}, {"score": 1}, {"text": null, "score": 0.5}]}',
    )
    table = read_table(path, "here")
    assert table.to_pylist() == [
        {"text": "a", "score": None},
        {"text": None, "score": 1.0},
        {"text": None, "score": 0.5},
    ]


def test_parquet_twins_and_categories(tmp_path):
    pa.parquet.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "twins.parquet")
    with pytest.raises(DataError, match="two columns have the name 'text'"):
        read_table(tmp_path / "twins.parquet", "here")
    pa.parquet.write_table(pa.table({"text": pa.array(["a", "b"]).dictionary_encode()}), tmp_path / "a.parquet")
    assert pa.types.is_string(read_table(tmp_path / "a.parquet", "here").schema.field("text").type)


def test_types_are_followed_over_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_ROWS", 2)
    good = [{"score": 1, "tags": []}, {"score": 2, "tags": []}, {"score": 2.5, "tags": ["x"]}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, good)))
    assert read_table(path, "here").to_pylist() == good
    path = write(tmp_path, "b.jsonl", "\n".join(map(json.dumps, [*good, {"score": "3", "tags": []}])))
    with pytest.raises(DataError, match="line 4: column 'score' is text"):
        read_table(path, "here")
    path = write(tmp_path, "c.csv", "text\n" + "\n".join("abcde"))
    assert read_table(path, "here").column("text").to_pylist() == list("abcde")


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "x", "answer_start": 1}, {"text": "y", "answer_start": 2}, {"text": ["y"], "answer_start": [1]}],
        [[{"label": 1}], [{"label": 2}], [{"label": "PER"}]],
    ],
)
def test_values_of_several_forms_are_named_with_their_row(tmp_path, rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"answers": row}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"train.*line 3.*another form than the rows before") as error:
        read_table(path, f"train ({path})", None)
    assert "parquet" not in str(error.value)
