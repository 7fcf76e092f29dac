"""Token classification and question answering from the command line: runs, scores again, predictions, stock loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from hftransfer import Run, predict
from tests.running import command, write_rows
from tests.tiny_models import WORDS

TAGGED: list[dict[str, Any]] = [
    {
        "tokens": WORDS[index : index + 1 + index % 9],
        "tags": [("O", "B-x", "I-x", "O", "B-y")[(index + at) % 5] for at in range(1 + index % 9)],
    }
    for index in range(40)
]
ASKED: list[dict[str, Any]] = [
    {
        "question": WORDS[index],
        "context": " ".join(WORDS[index : index + 30]),
        "answers": {
            "text": [WORDS[index + 2]] * (index % 2),
            "answer_start": [sum(map(len, WORDS[index : index + 2])) + 2] * (index % 2),
        },
    }
    for index in range(30)
]
TASKS: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "token_classification": (TAGGED, {"--data.text": "tokens", "--data.label": "tags"}),
    "question_answering": (
        ASKED,
        {
            "--data.text": "question",
            "--data.text_pair": "context",
            "--data.label": "answers",
            "--data.max_length": "20",
        },
    ),
}


def flat(settings: dict[str, Any]) -> list[str]:
    return [str(part) for setting in settings.items() for part in setting]


def train(task: str, folder: Path, checkpoint: Path, **settings: object) -> Run:
    rows, columns = TASKS[task]
    path = write_rows(folder / "rows.jsonl", rows)
    files = {"--checkpoint": checkpoint, "--data.train": path, "--data.test": path, "--output_dir": folder / "run"}
    more = {f"--{name.replace('__', '.')}": value for name, value in settings.items()}
    assert command("run", task, *flat({**files, **columns, "--optim.num_train_epochs": 2, **more})) == 0
    return Run(folder / "run")


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("strategy", ["feature_extraction", "lora"])
def test_a_run_is_scored_again_the_same(task: str, strategy: str, checkpoints: Path, tmp_path: Path) -> None:
    run = train(task, tmp_path, checkpoints / "bert", strategy=strategy)
    rows, columns = TASKS[task]
    assert run.recipe.task.type == task
    assert run.recipe.evaluation.metric == "f1"
    assert run.metrics["truncation"]["test"]["examples"] == len(rows)
    if strategy == "feature_extraction":
        assert run.metrics["training"]["cache_served_rows"] > 0
    scores = tmp_path / "scores.json"
    named = {name: value for name, value in columns.items() if name != "--data.max_length"}
    test = ["--data.test", tmp_path / "rows.jsonl", *flat(named)]
    assert command("evaluate", run.folder, *test, "--output", scores) == 0
    assert json.loads(scores.read_text()) == pytest.approx(run.metrics["test"])


def test_a_tagger_agrees_with_the_pipeline_and_a_plain_forward(checkpoints: Path, tmp_path: Path) -> None:
    run = train("token_classification", tmp_path, checkpoints / "bert")
    texts = [" ".join(row["tokens"]) for row in TAGGED if all(word.isalnum() for word in row["tokens"])]
    ours = predict(run, texts)
    tagger = pipeline("token-classification", model=str(run.model_folder), aggregation_strategy="first")
    stock_names = set()
    for record, found in zip(ours, tagger(texts), strict=True):
        # Every word is one token here, and the pipeline's groups are those of BIO tags.
        assert [(e["label"], e["start"], e["end"]) for e in record["entities"]] == [
            (group["entity_group"], group["start"], group["end"]) for group in found
        ]
        for entity, group in zip(record["entities"], found, strict=True):
            assert entity["score"] == pytest.approx(float(group["score"]), abs=1e-5)
        stock_names |= {group["entity_group"] for group in found}
    assert stock_names
    model = AutoModelForTokenClassification.from_pretrained(run.model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    rows = [row["tokens"] for row in TAGGED]
    for record, words in zip(predict(run, rows), rows, strict=True):
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**batch).logits[0].argmax(-1)
        word_ids = batch.word_ids()
        expected = [model.config.id2label[int(best[word_ids.index(word)])] for word in range(len(words))]
        assert record["prediction"] == expected


def test_answers_are_written_with_their_place(checkpoints: Path, tmp_path: Path) -> None:
    run = train("question_answering", tmp_path, checkpoints / "bert", strategy="lora")
    columns = ["--text", "question", "--text_pair", "context"]
    output = tmp_path / "out.jsonl"
    assert command("predict", run.folder, "--input", tmp_path / "rows.jsonl", "--output", output, *columns) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == len(ASKED)
    for record in records:
        start, end = record["start"], record["end"]
        assert record["prediction"] == ("" if start is None else record["context"][start:end])
        assert 0 < record["score"] <= 1
    together = [record["score"] for record in records]
    alone = [predict(run, data=[row], text="question", text_pair="context")[0]["score"] for row in ASKED[:4]]
    np.testing.assert_allclose(together[:4], alone, atol=1e-5)


def test_what_is_cut_off_is_reported(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("token_classification", tmp_path, checkpoints / "bert", data__max_length=6, task__long_inputs="head")
    facts = run.metrics["truncation"]["test"]
    long = [row for row in TAGGED if len(row["tokens"]) > 4]
    assert facts["truncated_examples"] == len(long)
    assert facts["truncated_tokens"] == sum(len(row["tokens"]) - 4 for row in long)
    assert 0 < facts["truncated_gold_labels"] < facts["gold_labels"]
    assert run.metrics["test"]["recall"] <= 1 - facts["truncated_gold_labels"] / facts["gold_labels"]
    lost = f"{facts['truncated_gold_labels']} of {facts['gold_labels']} labels out of sight"
    assert lost in " ".join(capsys.readouterr().out.split())
    columns = flat(TASKS["token_classification"][1])
    assert command("evaluate", run.folder, "--data.test", tmp_path / "rows.jsonl", *columns) == 0
    assert lost in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("token_classification", {"data__label": "tokens2"}, "no column 'tokens2'"),
        ("question_answering", {"data__label": "question"}, "holds string, not {text, answer_start}"),
        ("question_answering", {"task__stride": 19}, "task.stride: windows of 20 tokens"),
        ("token_classification", {"task__problem": "regression"}, "task.problem: unknown setting"),
    ],
)
def test_mistakes_are_one_line(
    task: str, settings: dict[str, Any], message: str, checkpoints: Path, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(AssertionError):
        train(task, tmp_path, checkpoints / "bert", **settings)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert "Traceback" not in lines[0]
