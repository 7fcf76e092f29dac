"""What a run leaves behind holds no training text and no secret of its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from hftransfer import Recipe, finetune
from tests.running import write_rows
from tests.tiny_models import write_tiny_checkpoint

MARKER, TOKEN = "zanzibarian", "hf_" + "CanaryToken" * 3 + "x"


def test_no_text_and_no_token_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    rows = [{"text": f"{MARKER} good film {number}", "label": ("no", "yes")[number % 2]} for number in range(24)]
    write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    recipe = Recipe(
        checkpoint=str(tmp_path / "checkpoint"),
        data={"train": str(write_rows(tmp_path / "train.jsonl", rows))},
        strategy="feature_extraction",
        optim={"num_train_epochs": 1},
        output_dir=str(tmp_path / "run"),
    )
    finetune(recipe)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"recipe.yaml", "log.jsonl", "metrics.json", "config.json", "tokenizer.json"} <= {
        path.name for path in files
    }
    for secret in (MARKER, TOKEN):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
