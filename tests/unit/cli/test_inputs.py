"""What is told of a data file before torch is loaded, and what is left to its reader, which knows the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import command


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "[[1, 2]]\n", "name the file .json"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n[1, 2]\n', "line 2: a list of a number where a record is wanted"),
        ("a.jsonl", '"text"\n', "line 1: text where a record is wanted"),
        ("a.jsonl", '{"text": "a", "label": "x"}\nnull\n', "line 2: null where a record is wanted"),
        ("a.json", '{"a": 3}', "not a list of records"),
        ("a.json", "[[1, 2]]", "row 1: a list of a number where a record is wanted"),
        ("a.jsonl", '{"texts": "a", "label": "x"}\n', "no column 'text'; there are 'texts', 'label'"),
    ],
)
def test_a_file_that_has_no_records_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    flags = ["--checkpoint", str(tmp_path / "model"), "--data.train", str(path), "--output_dir", str(tmp_path / "runs")]
    assert command("run", "text_classification", *flags, "--data.text", "text", "--data.label", "label") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()
