"""Sequence to sequence from the command line: a run, its scores again, generation equal to stock transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hftransfer import Recipe, Run, finetune, predict
from tests.running import command, flags, write_rows
from tests.tiny_models import WORDS

ROWS: list[dict[str, Any]] = [
    {
        "source": " ".join(WORDS[index : index + 2 + index % 6]),
        "target": [" ".join(reversed(WORDS[index : index + 2 + index % 4])), WORDS[index]][: 1 + index % 2],
    }
    for index in range(40)
]
PROMPT = "read the {text} in red"


def train(folder: Path, checkpoint: Path, **settings: object) -> Run:
    path = write_rows(folder / "rows.jsonl", ROWS)
    given: dict[str, object] = {
        "checkpoint": checkpoint,
        "data.train": path,
        "data.test": path,
        "data.text": "source",
        "data.label": "target",
        "task.prompt": PROMPT,
        "task.max_new_tokens": 6,
        "optim.num_train_epochs": 2,
        "output_dir": folder / "run",
        **settings,
    }
    assert command("run", "seq2seq", *flags(given)) == 0
    return Run(folder / "run")


def stock_texts(folder: Path, texts: list[str]) -> list[str]:
    """One text at a time, with nothing but transformers and the folder's own generation settings."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        with torch.no_grad():
            ids = model.generate(**tokenizer(text, return_tensors="pt"))[0]
        found.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    return found


@pytest.mark.parametrize(
    ("family", "strategy", "beams"),
    [("t5", "full_fine_tuning", 1), ("t5", "lora", 3), ("bart", "top_layers", 2), ("bart", "lora", 1)],
)
def test_a_run_generates_what_stock_transformers_does(
    family: str, strategy: str, beams: int, language_models: Path, tmp_path: Path
) -> None:
    checkpoint = language_models / family / "AutoModelForSeq2SeqLM"
    run = train(tmp_path, checkpoint, strategy=strategy, task__num_beams=beams)
    assert run.recipe.task.type == "seq2seq"
    assert run.recipe.evaluation.metric == "chrf"
    scores = tmp_path / "scores.json"
    named = ["--data.test", tmp_path / "rows.jsonl", "--data.text", "source", "--data.label", "target"]
    assert command("evaluate", run.folder, *named, "--output", scores) == 0
    assert json.loads(scores.read_text()) == pytest.approx(run.metrics["test"])
    found = [record["prediction"] for record in predict(run, data=ROWS, text="source")]
    assert found == stock_texts(run.model_folder, [PROMPT.replace("{text}", row["source"]) for row in ROWS])
    assert len(set(found)) > 1


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_frozen_encoder_runs_once(
    family: str, language_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Top layers of the decoder train from cached states to the weights and the scores of a whole pass."""
    checkpoint, runs = language_models / family / "AutoModelForSeq2SeqLM", {}
    for name, cache in (("cached", {}), ("whole", {"cache__max_bytes": 0})):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"strategy__k": 1, "optim__num_train_epochs": 4}
        runs[name] = train(folder, checkpoint, strategy__type="top_layers", **cache, **settings)
    cached, whole = runs["cached"].metrics, runs["whole"].metrics
    assert cached["training"]["cache_served_rows"] > 0
    assert "cache_served_rows" not in whole["training"] or not whole["training"]["cache_served_rows"]
    losses = [[record["loss"] for record in run.log if "loss" in record] for run in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert cached["test"] == pytest.approx(whole["test"], abs=1e-6)


def test_cut_outputs_and_rows_per_reference_are_reported(
    language_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, language_models / "t5" / "AutoModelForSeq2SeqLM", task__max_new_tokens=3)
    facts = run.metrics["truncation"]["train"]
    assert 0 < facts["truncated_gold_labels"] < facts["gold_labels"]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{facts['truncated_gold_labels']} of {facts['gold_labels']} labels out of sight" in printed
    assert f"train {facts['examples']} in" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": "bert"}, "AutoModelForSeq2SeqLM"),
        ({"task__prompt": "{text} and {text_pair}"}, "task.prompt: {text_pair} has no column"),
        ({"task__max_new_tokens": 64, "checkpoint": "bart"}, "the decoder has 64 positions"),
        ({"strategy": "feature_extraction", "checkpoint": "bart"}, "shares the weights of the embeddings"),
        ({"strategy": "bitfit", "checkpoint": "t5"}, "have no bias terms"),
        ({"data__label": "nothing"}, "no column 'nothing'"),
        ({"evaluation__metric": "accuracy"}, "no metric 'accuracy' for seq2seq"),
    ],
)
def test_mistakes_are_one_line(
    settings: dict[str, Any], message: str, language_models: Path, checkpoints: Path, tmp_path: Path, capsys: Any
) -> None:
    name = settings.pop("checkpoint", "t5")
    checkpoint = checkpoints / name if name == "bert" else language_models / name / "AutoModelForSeq2SeqLM"
    with pytest.raises(AssertionError):
        train(tmp_path, checkpoint, **settings)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


@pytest.mark.usefixtures("bf16")
def test_what_generates_in_a_bf16_training_sees_the_precision_of_its_frozen_weights(
    language_models: Path, tmp_path: Path
) -> None:
    """generate() goes around the forward that Accelerate wraps, and meets frozen weights that were cast to bf16."""
    recipe = Recipe(
        checkpoint=str(language_models / "t5" / "AutoModelForSeq2SeqLM"),
        data={"text": "source", "label": "target"},
        task={"type": "seq2seq", "max_new_tokens": 3},
        strategy={"type": "lora"},
        optim={"max_steps": 1, "per_device_train_batch_size": 4},
        output_dir=str(tmp_path / "run"),
    )
    run = finetune(recipe, train=ROWS[:8], validation=ROWS[:4])
    assert run.metrics["training"]["mixed_precision"] == "bf16"
