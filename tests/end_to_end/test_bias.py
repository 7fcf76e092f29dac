"""`hftransfer diagnose bias` as a user meets it: data alone, a run with groups and cases, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hftransfer import Run
from hftransfer.cli.main import main
from hftransfer.verdicts import read_verdicts
from tests.tiny_models import WORDS
from tests.tiny_runs import tiny_run

LABELS = ("calm", "rude")


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of the tiny vocabulary that name somebody; labels and groups by chance."""
    rng = np.random.default_rng(seed)
    return [
        {
            "text": f"{rng.choice(['she', 'he'])} {' '.join(rng.choice(WORDS, 6))}",
            "label": LABELS[int(rng.integers(2))],
            "who": str(rng.choice(["a", "b"])),
        }
        for _ in range(count)
    ]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "bias", *arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def write(path: Path, records: list[dict[str, Any]]) -> str:
    pd.DataFrame(records).to_csv(path, index=False)
    return str(path)


def test_a_planted_word_and_a_planted_leak_are_found_in_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = rows(300, 0), rows(60, 1)
    for row in [row for row in train if row["label"] == "rude"][:40]:
        row["text"] += " zorbly"
    train[:5] = test[:5]
    arguments = ("--data.train", write(tmp_path / "a.csv", train), "--data.test", write(tmp_path / "b.csv", test))
    page = tmp_path / "page.html"
    status, out, _ = call(capsys, *arguments, "--output", str(page), "--json")
    verdict = json.loads(out)
    assert status == 0
    assert verdict["warns"]
    told = " ".join(verdict["words"])
    assert "1 word nearly decides a label" in told
    assert "5 of 60 test rows (8.3%) are in the training data" in told
    (words,) = (table for table in verdict["hidden"] if table["caption"].startswith("Words"))
    assert words["rows"][0][:2] == ["zorbly", "rude"]
    assert "Models that see one thing alone" in page.read_text()
    status, out, _ = call(capsys, *arguments)
    assert "zorbly" in out


def test_a_run_keeps_what_was_found_about_groups_and_cases(
    tmp_path: Path, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, checkpoints)
    cases = write(
        tmp_path / "cases.csv",
        [
            {"text": f"{who} is bad", "label": label, "functionality": f"f_{label}", "target": who}
            for who in ("she", "he") * 15
            for label in ("hateful", "fine")
        ],
    )
    arguments = ("--cases", cases, "--positive_case", "hateful", "--positive", "rude")
    status, out, err = call(capsys, str(run.folder), *arguments)
    assert status == 0, err
    assert "Rates by who" in out
    (verdict,) = read_verdicts(run.folder)
    captions = [table.caption for table in [*verdict.tables, *verdict.hidden]]
    for caption in ("Cases by functionality", "Cases by target", "Another group in the same text", "Areas under ROC"):
        assert any(one.startswith(caption) for one in captions), captions
    told = " ".join(verdict.words)
    assert "Of the cases the model gets right" in told
    assert "A threshold per group of who" in told
    assert "not part of the saved model" in told
    for text in (run.report_file.read_text(), (run.model_folder / "README.md").read_text()):
        assert "Of the cases the model gets right" in text


def trained(tmp_path: Path, checkpoints: Path) -> Run:
    """A run whose data are files, so that they can be read again."""
    from hftransfer import Recipe, finetune

    files = {name: write(tmp_path / f"{name}.csv", rows(count, at)) for at, (name, count) in enumerate(
        (("train", 120), ("validation", 80), ("test", 80)))}  # fmt: skip
    return finetune(
        Recipe(
            checkpoint=str(checkpoints / "bert"),
            data={**files, "sensitive": "who", "max_length": 16, "counterfactuals": "builtin"},
            task={"type": "text_classification", "balance": "sample_groups"},
            strategy="feature_extraction",
            optim={"num_train_epochs": 1},
            output_dir=str(tmp_path / "run"),
            preflight="off",
        )
    )


def test_training_with_every_balance_ends(tmp_path: Path, checkpoints: Path) -> None:
    data = rows(24, 3)
    for balance in ("classes", "groups", "sample_classes", "sample_groups"):
        run = tiny_run(
            "text_classification",
            "full_fine_tuning",
            checkpoints / "bert",
            tmp_path / balance,
            rows=data,
            settings={"balance": balance},
            columns={"sensitive": "who"},
            preflight="off",
        )
        assert run.recipe.task.balance == balance  # type: ignore[union-attr]
        assert np.isfinite(run.metrics["test"]["accuracy"])


def test_test_rows_with_and_without_groups_are_the_same(tmp_path: Path, checkpoints: Path) -> None:
    from hftransfer.report.outcomes import load

    hashes = []
    for name, columns in (("with", {"sensitive": "who"}), ("without", {})):
        data = rows(24, 3)
        checkpoint = checkpoints / "bert"
        run = tiny_run(
            "text_classification", "feature_extraction", checkpoint, tmp_path / name, rows=data, columns=columns
        )
        hashes.append(load(run.folder)["test"].rows.tolist())
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look at"),
        (["no/run"], "no finished run"),
        (["--data.train", "absent.csv"], "no such file"),
        (["--data.train", "FILE", "--cases", "FILE"], "cases need a model"),
        (["--data.train", "FILE", "--output", "page.txt"], "use .html"),
        (["--data.train", "FILE", "--groups", "whom"], "did you mean 'who'"),
        (["--data.train", "FILE", "--positive", "loud"], "no label 'loud'"),
        (["--data.train", "FILE", "--positive", "calm,rude"], "not all or none"),
        (["--data.train", "FILE", "--terms", "FILE"], "not the columns"),
        (["--data.train", "FILE", "--data.streaming", "true"], "all rows at once"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = write(tmp_path / "data.csv", rows(40, 0))
    status, out, err = call(capsys, *(file if one == "FILE" else one for one in arguments))
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
