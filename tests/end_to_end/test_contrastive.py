"""Whole contrastive runs: what is saved is what was scored, pairs are one input, seeds and checks work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hftransfer import Recipe, predict
from hftransfer.finetuning import check
from hftransfer.report import outcomes
from tests.tiny_runs import TASKS, TEXTS, tiny_run

ROWS = TASKS["text_classification"][2]
PAIRS = [{**row, "other": TEXTS[-1 - at]} for at, row in enumerate(ROWS)]


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "t5", "gpt2"])
@pytest.mark.parametrize("paired", [False, True], ids=["texts", "pairs"])
def test_plain_transformers_gives_what_was_scored(
    family: str, paired: bool, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    columns = {"text_pair": "other"} if paired else {}
    run = tiny_run(
        "text_classification", "contrastive", checkpoints / family, tmp_path / "run", rows=PAIRS, columns=columns
    )
    model = AutoModelForSequenceClassification.from_pretrained(run.model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    rows = PAIRS[6:]
    texts = [[row["text"], row["other"]] if paired else [row["text"]] for row in rows]
    found = []
    for one in texts:
        with torch.no_grad():
            found.append(model(**tokenizer(*one, return_tensors="pt")).logits[0].numpy())
    expected = outcomes.load(run.folder)["test"].arrays["logits"]
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-3, rtol=1e-3)
    assert [record["stage"] for record in run.log if "loss" in record] == ["pairs", "head"]
    names = [record["prediction"] for record in predict(run, data=rows, text_pair=columns.get("text_pair"))]
    assert names == [model.config.id2label[int(row.argmax())] for row in np.stack(found)]


def test_several_seeds_are_trained_one_by_one(checkpoints: Path, tmp_path: Path) -> None:
    run = tiny_run("text_classification", "contrastive", checkpoints / "bert", tmp_path / "run", seeds=[1, 2])
    assert sorted(path.name for path in (tmp_path / "run" / "seeds").iterdir()) == ["1", "2"]
    assert "fitted" in run.report_file.read_text(encoding="utf-8")
    assert json.loads((run.folder / "report.json").read_text(encoding="utf-8"))["rates"][1]["depths"][0]["rate"] is None


def test_the_check_takes_steps_on_pairs(checkpoints: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        checkpoint=str(checkpoints / "bert"),
        strategy={"type": "contrastive", "pairs": 3},
        optim={"learning_rate": 1e-3},
        output_dir=str(tmp_path / "run"),
    )
    report = check(recipe, train=ROWS, validation=ROWS)
    found = {finding.code: finding for finding in report.findings}
    assert found["learns_a_batch"].where == "stage 'pairs'"
    assert not [finding for finding in report.findings if finding.severity == "error"]
    assert found["time"].facts["steps"] == 4
