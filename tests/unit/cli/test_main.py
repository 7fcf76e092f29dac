"""The command as a whole: help without torch, exit codes, one line per user error, defects with their traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hftransfer
from hftransfer.cli.main import guarded, main
from hftransfer.cli.tables import print_table
from hftransfer.errors import DataError
from hftransfer.terminal import console
from hftransfer.training import summary

HEAVY = "{'torch', 'transformers', 'datasets', 'peft', 'accelerate', 'pandas', 'sklearn'}"
LIGHT = f"""
import sys
from hftransfer.cli.main import main
for arguments in (["--help"], ["run", "--help"], ["predict", "--help"], ["evaluate", "--help"], ["recipes"],
                  ["run", "text_classification", "--sed", "3"]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == (2 if "--sed" in arguments else 0), (arguments, stop.code)
print("loaded:", sorted({HEAVY} & set(sys.modules)))
"""


def exit_code(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_help_listing_and_mistakes_load_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("run", "recipes", "copy", "predict", "evaluate"))
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.strip() == hftransfer.__version__
    assert exit_code("run", "--help") == 0
    printed = capsys.readouterr().out
    for name in ("--config", "--checkpoint", "--data.train", "--optim.learning_rate", "--strategy.r", "--output_dir"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], 'Did you mean "run"?'),
        (["run"], "NAME requires an argument"),
        (["run", "text_clasification", "--checkpoint", "m"], "did you mean text_classification?"),
        (["run", "text_classification", "--checkpoint", "m", "extra"], "extra"),
        (["predict", "absent"], "--input requires an argument"),
        (["predict", "absent", "--input", "absent.csv", "--output", "out.csv"], "absent.csv): no such file"),
        (["predict", "absent", "--input", "absent.csv", "--output", "out.xls"], "cannot write '.xls' files"),
        (["evaluate", "absent"], "data.test: no data to evaluate on; give a file with --data.test"),
        (["evaluate", "absent", "--data.test", "absent.csv"], "absent.csv): no such file"),
        (["evaluate", "absent", "--data.test", "a.csv", "--output", "no/scores.json"], "no: no such folder"),
        (["evaluate", "absent", "--data.max_length", "0"], "data.max_length: Input should be greater than 0"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_user_can_mend_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    def mendable() -> None:
        raise DataError("two\nlines", where="file", fix="mend it")

    def defect() -> None:
        raise RuntimeError("ours")

    assert guarded(mendable) == 2
    assert "error: file: two lines; mend it\n" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="ours"):
        guarded(defect)
    assert guarded(lambda: None) == 0


def test_a_reader_that_leaves_is_no_defect(tmp_path: Path) -> None:
    """`hftransfer recipes | head -1`: what nobody reads any more ends the program without a traceback."""
    code = "from hftransfer.cli.main import main; import sys; sys.stdin.read(); main(['recipes'])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    ) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    assert guarded(stopped) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a [/b]", ["label", "score"], [["[/INST]", ":smile: [neg]"]])
    console().print(summary.score_table({"test": {"f1/[/x]": 0.5, "f1/[neg]": 0.25}}))
    shown = capsys.readouterr().out
    for text in ("a [/b]", "[/INST]", ":smile: [neg]", "f1/[/x]", "f1/[neg]"):
        assert text in shown
