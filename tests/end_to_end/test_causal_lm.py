"""Causal language modelling from the command line: texts and completions, scores again, stock transformers' outputs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hftransfer import Run, predict
from tests.running import command, flags, write_rows
from tests.tiny_models import WORDS

ROWS = [
    {"text": " ".join(WORDS[index : index + 2 + index % 9]), "answer": WORDS[(index * 7) % 50]} for index in range(40)
]
COMPLETING = {"data.label": "answer", "task.prompt": "read: {text} ?", "task.max_new_tokens": 5}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def train(rows: Path, checkpoint: Path, **settings: object) -> Run:
    given: dict[str, object] = {
        "checkpoint": checkpoint,
        "data.train": rows,
        "data.test": rows,
        "optim.num_train_epochs": 3,
        "output_dir": rows.parent / "run",
        **settings,
    }
    assert command("run", "causal_lm", *flags(given)) == 0
    return Run(rows.parent / "run")


@pytest.mark.parametrize("strategy", ["full_fine_tuning", "lora", "top_layers"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_completions(family: str, strategy: str, language_models: Path, rows: Path, tmp_path: Path) -> None:
    run = train(rows, language_models / family / "AutoModelForCausalLM", strategy=strategy, **COMPLETING)
    assert run.recipe.data.label == "answer"
    assert {"token_loss", "exact_match", "chrf"} <= set(run.metrics["test"])
    if strategy == "top_layers":
        assert run.metrics["training"]["cache_served_rows"] > 0
    scores = tmp_path / "scores.json"
    named = ["--data.test", rows, "--data.label", "answer", "--output", scores]
    assert command("evaluate", run.folder, *named) == 0
    assert json.loads(scores.read_text()) == pytest.approx(run.metrics["test"], abs=1e-6)
    model = AutoModelForCausalLM.from_pretrained(run.model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    for row, record in zip(ROWS, predict(run, [row["text"] for row in ROWS]), strict=True):
        ids = tokenizer(f"read: {row['text']} ?", return_tensors="pt")
        with torch.no_grad():
            new = model.generate(**ids)[0, ids["input_ids"].shape[1] :]
        assert record["prediction"] == tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize(("family", "strategy"), [("gpt2", "full_fine_tuning"), ("llama", "top_layers")])
def test_texts(family: str, strategy: str, language_models: Path, rows: Path, tmp_path: Path) -> None:
    run = train(rows, language_models / family / "AutoModelForCausalLM", strategy=strategy)
    assert set(run.metrics["test"]) == {"token_loss", "perplexity"}
    assert run.metrics["training"]["train_examples"] < 36, "packed"
    scores = tmp_path / "scores.json"
    assert command("evaluate", run.folder, "--data.test", rows, "--output", scores) == 0
    assert json.loads(scores.read_text()) == pytest.approx(run.metrics["test"])
    # A run's recipe is a recipe: what it leaves open stays open.
    again = ["--config", run.folder / "recipe.yaml", "--output_dir", tmp_path / "again"]
    assert command("run", "causal_lm", *again) == 0
    assert Run(tmp_path / "again").metrics["test"] == pytest.approx(run.metrics["test"])
    model = AutoModelForCausalLM.from_pretrained(run.model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    assert model.config.use_cache
    for row, record in zip(ROWS, predict(run, [row["text"] for row in ROWS]), strict=True):
        ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert record["prediction"] == pytest.approx(math.exp(loss), rel=1e-3)
        assert record["tokens"] == ids.shape[1] - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task.prompt": "read "}, "task.prompt: a prompt without completions"),
        ({"data.label": "answer", "task.prompt": "chat"}, "the tokenizer has no chat template"),
        ({"data.label": "answer", "task.max_new_tokens": 64}, "leave no room for a prompt"),
        ({"strategy": "lp_ft"}, "shares the weights of the embeddings"),
        ({"evaluation.metric": "exact_match"}, "no metric 'exact_match' for causal_lm"),
    ],
)
def test_mistakes_are_one_line(
    settings: dict[str, Any], message: str, language_models: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        train(rows, language_models / "gpt2" / "AutoModelForCausalLM", **settings)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
