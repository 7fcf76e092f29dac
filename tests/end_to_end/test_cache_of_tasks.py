"""Token-level heads, windows and pairs of texts lose nothing by the feature cache: a few steps with it and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hftransfer import Run
from hftransfer.training import loop
from tests.cached_runs import UNCACHED, facts, losses
from tests.tiny_runs import TASKS, TEXTS, tiny_run

PAIRS = [{**row, "other": TEXTS[-at]} for at, row in enumerate(TASKS["text_classification"][2])]
# Windows of fewer tokens than most texts have, so that examples have several.
CASES: dict[str, dict[str, Any]] = {
    "tags": {"task": "token_classification"},
    "tags in windows": {
        "task": "token_classification",
        "settings": {"long_inputs": "windows", "stride": 2},
        "columns": {"max_length": 7},
    },
    "answers in windows": {"task": "question_answering", "settings": {"stride": 1}, "columns": {"max_length": 10}},
    "pairs": {"task": "text_classification", "rows": PAIRS, "columns": {"text_pair": "other"}},
    "pairs in windows": {
        "task": "text_classification",
        "rows": PAIRS,
        "settings": {"long_inputs": "windows", "stride": 1},
        "columns": {"text_pair": "other", "max_length": 14},
    },
}


def rows_stored(states: Path) -> int:
    return sum(json.loads(path.read_text())["rows"] for path in states.rglob("meta.json"))


@pytest.mark.parametrize("strategy", ["feature_extraction", "top_layers"])
@pytest.mark.parametrize("case", list(CASES))
def test_losses_and_scores_are_those_of_the_uncached_run(
    case: str, strategy: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tmp_path / "states"
    monkeypatch.setenv("HFTRANSFER_CACHE", str(states))
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    given = dict(CASES[case])
    task = given.pop("task")
    # More than a pass over the data: for a single one nothing is stored.
    optim = {"max_steps": 12, "learning_rate": 1e-3, "per_device_train_batch_size": 8}

    def run(name: str, **more: Any) -> Run:
        return tiny_run(
            task, strategy, checkpoints / "bert", tmp_path / name, optim=optim, preflight="off", **given, **more
        )

    plain, cached = run("plain", **UNCACHED), run("cached")
    assert (facts(plain)["cache_served_rows"], facts(cached)["cache_recomputed_rows"]) == (0, 0)
    assert facts(cached)["cache_served_rows"] > 12 * 4
    assert (rows_stored(states) > len(TEXTS)) == case.endswith("in windows")
    assert len(losses(cached)) == 12
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-6)
    for split in ("validation", "test"):
        assert cached.metrics[split] == pytest.approx(plain.metrics[split], abs=1e-6, nan_ok=True)
