"""`hftransfer diagnose domain` as users call it."""

from __future__ import annotations

import html
import json
import random
from pathlib import Path

import pytest

from hftransfer import Run
from hftransfer.verdicts import read_verdicts
from tests.running import command, write_rows
from tests.tiny_models import WORDS
from tests.tiny_runs import TASKS, tiny_run


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    rows = [{"review": " ".join(draw.choices(WORDS, k=6)), "label": draw.choice("ab")} for _ in range(60)]
    write_rows(tmp_path / "train.jsonl", rows[:30])
    write_rows(tmp_path / "later.jsonl", rows[30:])
    (tmp_path / "general.txt").write_text("\n".join(row["review"] for row in rows), encoding="utf-8")
    return tmp_path


def test_a_page_and_words(files: Path, language_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = language_models / "bert" / "AutoModelForMaskedLM"
    sources = ["--train", "train.jsonl", "--deployment", "later.jsonl", "--reference", "general.txt"]
    assert command("diagnose", "domain", "--checkpoint", checkpoint, *sources, "--text", "review") == 0
    printed = capsys.readouterr().out
    assert "proxy A-distance" in printed
    # A head of random weights guesses nothing.
    assert "Whether domain-adaptive pretraining pays cannot be foretold" in printed
    page = (files / "domain.html").read_text()
    assert page.count("<svg") == 2
    assert "pieces per word" in page
    assert "general.txt" in page


def test_json_alone(files: Path, language_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = language_models / "gpt2" / "AutoModelForCausalLM"
    options = ["--text", "review", "--label", "label", "--max_texts", 25, "--json"]
    sources = ["--train", "train.jsonl", "--deployment", "later.jsonl"]
    assert command("diagnose", "domain", "--checkpoint", checkpoint, *sources, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["training"]["texts"] == 25
    assert found["pairs"][0]["label"]["test"] == "chi-square"
    assert not (files / "domain.html").exists()


def test_a_run_gets_the_verdict(
    files: Path, checkpoints: Path, language_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run("text_classification", "feature_extraction", checkpoints / "bert", files / "run")
    rows = [
        {"text": f"{row['text']} {at}", "label": row["label"]}
        for at in range(3)
        for row in TASKS["text_classification"][2]
    ]
    write_rows(files / "rows.jsonl", rows)
    sources = ["--train", "rows.jsonl", "--deployment", "rows.jsonl"]
    assert command("diagnose", "domain", "--run", "run", *sources) == 0
    assert "Report: run/report.html" in capsys.readouterr().out
    (verdict,) = read_verdicts(files / "run")
    assert verdict.key == "domain"
    run = Run(files / "run")
    assert verdict.words[0] in html.unescape(run.report_file.read_text())
    assert "Domain mismatch" in (run.model_folder / "README.md").read_text()
    assert not (files / "domain.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint: no checkpoint; give a folder or a Hub id, or --run RUN"),
        (["--checkpoint", "m"], "two sources of texts are needed, and none is given"),
        (["--checkpoint", "m", "--train", "train.jsonl"], "only training is given"),
        (["--checkpoint", "m", "--train", "trian.jsonl", "--reference", "x"], "did you mean 'train.jsonl'?"),
        (["--checkpoint", "./m", "--train", "train.jsonl", "--reference", "general.txt"], "no column 'text'"),
        (["--checkpoint", "./m", "--train", "general.txt", "--reference", "general.txt"], "./m: no such folder"),
        (["--checkpoint", "m", "--train", "general.txt", "--reference", "general.txt", "--output", "no/x.html"],
         "no: no such folder"),
        (["--run", "nowhere", "--reference", "general.txt"], "not the recipe of a run"),
        (["--max_texts", "0"], "max_texts"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    files: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(files.iterdir())
    assert command("diagnose", "domain", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(files.iterdir()) == before
