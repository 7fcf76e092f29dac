"""Secrets: found in every form they are given in, and nothing else is touched."""

from __future__ import annotations

import base64
import io
import json
import sys
from contextlib import redirect_stderr
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hftransfer import Recipe
from hftransfer.cli.main import guarded
from hftransfer.errors import UserError
from hftransfer.redaction import MARK, RedactedStream, holds_secret, redact, redact_values, secret_setting
from hftransfer.run_files import write_whole
from tests.running import command

TOKEN = "hf_" + "CanaryToken" * 3 + "x"
SECRET = "long/password+of=mine é"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A secret in the environment, and a token of the Hub's login."""
    monkeypatch.setenv("SERVICE_PASSWORD", SECRET)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("login-token-0123456789\n", encoding="utf-8")
    return SECRET


def test_a_secret_of_the_environment_is_found_in_every_form(secrets: str) -> None:
    raw = secrets.encode()
    forms = [secrets, quote(secrets), quote(secrets, safe=""), quote_plus(secrets), "login-token-0123456789"]
    for form in forms:
        assert redact(f"before {form} after") == f"before {MARK} after"
    for before in (b"", b"u", b"me", b"me:", b"abcd"):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = redact(encode(before + raw + b"tail").decode())
            assert MARK in text
            assert encode(raw).decode()[4:-4] not in text


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"https://me:{'pw' * 5}@host/x",
        "https://tokenvalue@host/x",
        "https://host/x.csv?a=1&token=abc",
        "s3://bucket/x?X-Amz-Signature=abc",
        "Authorization: Bearer abcdefghijklmnop",
        "github_pat_" + "a1" * 15,
        "AKIA" + "A1B2" * 4,
    ],
)
def test_known_formats_are_secrets(text: str) -> None:
    assert holds_secret(text)
    assert not holds_secret(redact(text))


@pytest.mark.parametrize(
    "text",
    [
        "org/name@main",
        "google-bert/bert-base-uncased@" + "0123456789" * 4,
        "runs/my-token_classification",
        "hf_internal_testing/tiny",
        "https://host/a@b",
        "s3://bucket/train.csv",
        "data/train.csv?",
        "A Basic understanding of tokens = good",
        "sk-learn-pipeline-of-a-long-name",
        "C:\\data\\key=1",
    ],
)
def test_usual_settings_are_none(text: str) -> None:
    assert redact(text) == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_short_values_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "postgres")
    assert redact("data/postgres/train.csv") == "data/postgres/train.csv"


def test_nested_values_are_redacted_and_the_first_setting_is_named() -> None:
    values = {"a": 1, "data": {"train": f"x/{TOKEN}"}, "trackers": [TOKEN]}
    assert redact_values(values) == {"a": 1, "data": {"train": f"x/{MARK}"}, "trackers": [MARK]}
    assert secret_setting(values) == "data.train"
    assert secret_setting({"a": {"b": "c"}, "d": ["e"]}) is None
    assert secret_setting({TOKEN: 1}) == MARK


def test_recipes_messages_and_files_hold_no_secret(tmp_path: Path, secrets: str) -> None:
    for settings in ({"checkpoint": TOKEN}, {"checkpoint": "c", "data": {"train": secrets}}):
        with pytest.raises(ValidationError) as refusal:
            Recipe(**settings)  # type: ignore[arg-type]
        assert "holds a token or a password" in str(refusal.value)
        assert TOKEN not in str(refusal.value)
        assert secrets not in str(refusal.value)
    with pytest.raises(ValidationError) as refusal:
        Recipe(checkpoint="c", seed="c4nary-of-no-known-format")  # type: ignore[arg-type]
    assert "c4nary" not in str(refusal.value)
    assert secrets not in str(UserError(secrets, where=secrets, fix=secrets))
    write_whole(tmp_path / "metrics.json", json.dumps({"name": TOKEN}))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"name": MARK}


def test_a_command_line_with_a_secret_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(f"data: {{train: 'https://host/x?token={TOKEN}'}}", encoding="utf-8")
    for arguments, where in (
        (("predict", "model", "--input", TOKEN, "--output", "o.csv"), "--input"),
        (("run", "text_classification", "--checkpoint", "c", "--config", config), "data.train"),
    ):
        assert command(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {where}: holds a token or a password; tokens come from HF_TOKEN")
        assert TOKEN not in line


def test_what_is_printed_is_redacted_even_after_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def defect() -> None:
        print("see", TOKEN, file=sys.stderr)
        raise RuntimeError(f"cannot use {TOKEN}")

    errors = io.StringIO()
    with redirect_stderr(errors):
        try:
            guarded(defect)
        except RuntimeError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    assert f"see {MARK}" in errors.getvalue()
    assert f"RuntimeError: cannot use {MARK}" in errors.getvalue()
    assert TOKEN not in errors.getvalue()


def test_a_redacted_stream_is_the_stream_otherwise() -> None:
    stream = RedactedStream(io.StringIO())
    assert stream.write(TOKEN) == len(TOKEN)
    stream.writelines(["a", TOKEN])
    assert stream.getvalue() == f"{MARK}a{MARK}"
    assert not stream.isatty()
