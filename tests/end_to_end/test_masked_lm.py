"""Masked language modelling from the command line, and what the next recipe makes of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from hftransfer import Recipe, Run, finetune, predict
from hftransfer.training import loop
from tests.running import command, flags, write_rows
from tests.tiny_models import WORDS

ROWS = [{"text": " ".join(WORDS[index : index + 3 + index % 30])} for index in range(40)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def train(rows: Path, checkpoint: Path, **settings: object) -> Run:
    given: dict[str, object] = {
        "checkpoint": checkpoint,
        "data.train": rows,
        "data.test": rows,
        "data.max_length": 16,
        "optim.num_train_epochs": 2,
        "optim.per_device_train_batch_size": 8,
        "output_dir": rows.parent / "run",
        **settings,
    }
    assert command("run", "masked_lm", "--task.whole_words", *flags(given)) == 0
    return Run(rows.parent / "run")


@pytest.mark.parametrize(
    ("family", "strategy"), [("bert", "full_fine_tuning"), ("albert", "lora"), ("t5", "full_fine_tuning")]
)
def test_a_run_learns_and_is_scored_again_the_same(
    family: str, strategy: str, language_models: Path, rows: Path, tmp_path: Path
) -> None:
    checkpoint = language_models / family / ("AutoModelForSeq2SeqLM" if family == "t5" else "AutoModelForMaskedLM")
    run = train(rows, checkpoint, strategy=strategy, optim__learning_rate=0.01, optim__num_train_epochs=8)
    assert run.recipe.task.type == "masked_lm"
    assert run.recipe.evaluation.metric == "token_loss"
    assert run.metrics["truncation"]["train"]["truncated_tokens"] == 0
    losses = [record["validation_token_loss"] for record in run.log if "validation_token_loss" in record]
    assert min(losses[1:]) < losses[0]
    scores = tmp_path / "scores.json"
    assert command("evaluate", run.folder, "--data.test", rows, "--output", scores) == 0
    assert json.loads(scores.read_text()) == pytest.approx(run.metrics["test"])
    records = predict(run, [row["text"] for row in ROWS])
    assert all(record["prediction"] > 1 and record["tokens"] >= 1 for record in records)


def test_a_resumed_training_ends_with_the_same_bits(
    language_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def settings(name: str, **more: Any) -> Recipe:
        optim = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
        checkpoint = str(language_models / "bert" / "AutoModelForMaskedLM")
        return Recipe(checkpoint=checkpoint, task="masked_lm", output_dir=str(tmp_path / name), optim=optim, **more)

    whole = finetune(settings("whole"), train=ROWS, validation=ROWS[:9])
    real = loop.training_step
    with monkeypatch.context() as patch:

        def dying(*args: Any, **kwargs: Any) -> Any:
            if kwargs["step"] == 5:
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(loop, "training_step", dying)
        with pytest.raises(Killed):
            finetune(settings("killed", checkpoint_every=2, resume="auto"), train=ROWS, validation=ROWS[:9])
    resumed = finetune(settings("killed", checkpoint_every=2, resume="auto"), train=ROWS, validation=ROWS[:9])
    expected, found = (load_file(run.model_folder / "model.safetensors") for run in (whole, resumed))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert whole.metrics["validation"] == resumed.metrics["validation"]


def test_the_next_recipe_starts_from_the_adapted_model(language_models: Path, rows: Path, tmp_path: Path) -> None:
    run = train(rows, language_models / "bert" / "AutoModelForMaskedLM")
    adapted = AutoModelForMaskedLM.from_pretrained(run.model_folder).bert.embeddings.word_embeddings.weight
    labelled = [{**row, "label": ("a", "b")[number % 2]} for number, row in enumerate(ROWS)]
    recipe = Recipe(checkpoint=str(run.model_folder), strategy="feature_extraction", output_dir=str(tmp_path / "next"))
    following = finetune(recipe, train=labelled)
    weights = load_file(following.model_folder / "model.safetensors")
    assert torch.equal(weights["bert.embeddings.word_embeddings.weight"], adapted)
    assert predict(following, ["the film"])[0]["prediction"] in ("a", "b")


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bert", "has no pretrained head for masked_lm: cls.predictions"),
        ("gpt2", "gpt2 models cannot do masked_lm"),
        ("bart", "bart models cannot do masked_lm"),
    ],
)
def test_checkpoints_without_the_head_are_refused_in_one_line(
    family: str, message: str, checkpoints: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        train(rows, checkpoints / family)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not (rows.parent / "run").exists()
