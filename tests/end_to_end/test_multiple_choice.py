"""Multiple choice from the command line: files in, a stock model folder out, the same scores again."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from hftransfer import Run, predict
from tests.running import command, write_rows
from tests.tiny_models import WORDS

ROWS = [
    {
        "premise": " ".join(WORDS[index : index + 2 + index % 5]),
        "choices": [WORDS[(index * 7 + number) % 50] for number in range(2 + index % 3)],
        "right": index % 2,
    }
    for index in range(30)
]
COLUMNS = ["--data.text", "premise", "--data.text_pair", "choices"]


def train(folder: Path, checkpoint: Path, *flags: object) -> Run:
    for split, count in (("train", 24), ("test", 30)):
        write_rows(folder / f"{split}.jsonl", ROWS[:count])
    settings = {
        "--checkpoint": checkpoint,
        "--data.train": folder / "train.jsonl",
        "--data.test": folder / "test.jsonl",
        "--data.text": "premise",
        "--data.text_pair": "choices",
        "--data.label": "right",
        "--optim.max_steps": 2,
        "--output_dir": folder / "run",
        **dict(zip(flags[::2], flags[1::2], strict=True)),
    }
    assert command("run", "multiple_choice", *(part for setting in settings.items() for part in setting)) == 0
    return Run(folder / "run")


@pytest.mark.parametrize("strategy", ["feature_extraction", "lora"])
def test_a_run_scores_predicts_and_loads_without_us(
    strategy: str, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, checkpoints / "bert", "--strategy", strategy)
    assert run.recipe.task.type == "multiple_choice"
    if strategy == "feature_extraction":
        assert "no feature cache: an example is several sequences" in capsys.readouterr().out
    scores = tmp_path / "scores.json"
    test = ["--data.test", tmp_path / "test.jsonl", "--data.label", "right"]
    assert command("evaluate", run.folder, *test, *COLUMNS, "--output", scores) == 0
    assert json.loads(scores.read_text()) == pytest.approx(run.metrics["test"])
    arguments = ["--input", tmp_path / "test.jsonl", "--output", tmp_path / "out.csv"]
    assert command("predict", run.folder, *arguments, "--text", "premise", "--text_pair", "choices") == 0
    frame = pd.read_csv(tmp_path / "out.csv")
    model = AutoModelForMultipleChoice.from_pretrained(run.model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    for row, found, probabilities in zip(ROWS, frame["prediction"], frame["probabilities"], strict=True):
        pairs = [row["premise"]] * len(row["choices"]), row["choices"]
        batch = {name: t[None] for name, t in tokenizer(*pairs, padding=True, return_tensors="pt").items()}
        with torch.no_grad():
            expected = model(**batch).logits[0].softmax(-1)
        assert json.loads(probabilities) == pytest.approx(expected.tolist(), abs=1e-4)
        assert int(found) == json.loads(probabilities).index(max(json.loads(probabilities)))
    records = predict(run, data=ROWS[:3], text="premise", text_pair="choices")
    assert [record["prediction"] for record in records] == frame["prediction"][:3].tolist()
    assert [record["choice"] for record in records] == [
        row["choices"][number] for row, number in zip(ROWS, frame["prediction"], strict=False)
    ][:3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.text_pair", "absent"], "no column 'absent'"),
        (["--data.text_pair", "premise"], "column 'premise' holds string, not lists of texts"),
        (["--data.label", "premise"], "column 'premise' holds string, not whole numbers"),
        (["--task.type", "text_classification"], "task.type: is 'text_classification', but multiple_choice is run"),
        (["--task.pooling", "mean"], "task.pooling: unknown setting"),
        (["--task.type", "multiple_choise"], "no task is called 'multiple_choise'; did you mean multiple_choice?"),
        (["--evaluation.metric", "f1"], "no metric 'f1' for multiple_choice"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        train(tmp_path, checkpoints / "bert", *flags)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_family_without_the_head_is_refused(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        train(tmp_path, checkpoints / "gpt2")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "gpt2" in lines[0]
    assert "AutoModelForMultipleChoice" in lines[0]
