"""Training from stored states is the same training: equal losses and weights, found again by every run that may."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hftransfer import Recipe, Run, finetune
from hftransfer.training import loop
from tests.cached_runs import ROWS, STRATEGIES, UNCACHED, facts, losses, stored, train, weights
from tests.tiny_models import write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("own_cache")


@dataclass(frozen=True)
class Stored:
    """A run that filled a cache; others take a copy of it."""

    run: Run
    states: Path

    def put(self, states: Path) -> Run:
        """Leave the cache as the run left it; returns the run."""
        if self.states.exists():
            shutil.copytree(self.states, states)
        return self.run


@pytest.fixture(scope="module")
def trained(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Stored]:
    """What several tests begin with or compare with, trained once: a strategy's run, each with a cache of its own."""
    made: dict[str, Stored] = {}

    def make(strategy: str = "feature_extraction", **sections: Any) -> Stored:
        key = repr((strategy, sections))
        if key not in made:
            folder = tmp_path_factory.mktemp("trained")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HFTRANSFER_CACHE", str(folder / "states"))
                patch.setattr(loop, "LOG_EVERY", 1)
                made[key] = Stored(train(folder / "run", bert, strategy, **sections), folder / "states")
        return made[key]

    return make


Trained = Callable[..., Stored]


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_losses_and_weights_are_those_of_the_uncached_run(strategy: str, trained: Trained) -> None:
    plain, cached = trained(strategy, **UNCACHED).run, trained(strategy).run
    assert "cache_served_rows" in facts(cached)
    assert facts(cached)["cache_encoded_rows"] > 0
    assert facts(cached)["cache_served_rows"] >= len(losses(cached)) // 4 * 8
    # Same batches, same dropout; a row's states alone were computed in another batch, which rounds differently.
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-6)
    # A key bias shifts all of a query's scores alike: its gradient is rounding noise, which Adam scales to full steps.
    for name, expected in weights(plain).items():
        if name.endswith("key.bias"):
            continue
        torch.testing.assert_close(weights(cached)[name], expected, atol=1e-5, rtol=0.0, msg=name)


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_under_autocast_the_cache_is_used_as_well(strategy: str, bert: Path, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", bert, strategy, cache={"max_bytes": 0})
    cached = train(tmp_path / "cached", bert, strategy)
    assert facts(cached)["mixed_precision"] == "bf16"
    assert facts(cached)["cache_served_rows"] >= len(losses(cached)) // 4 * 8
    # A loss near log(3), whose states were rounded to 8 bits at another place.
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-2)
    assert sum(losses(cached)) == pytest.approx(sum(losses(plain)), abs=1e-3 * len(losses(plain)))


def test_a_run_that_finds_its_states_is_bit_equal_to_the_one_that_stored_them(
    trained: Trained, bert: Path, tmp_path: Path, own_cache: Path
) -> None:
    first = trained("top_layers").put(own_cache)
    second = train(tmp_path / "second", bert, "top_layers")
    assert (facts(first)["cache_encoded_rows"] > 0, facts(second)["cache_encoded_rows"]) == (True, 0)
    assert losses(first) == losses(second)
    for name, expected in weights(first).items():
        assert torch.equal(weights(second)[name], expected), name


def test_one_pass_serves_all_stages_of_gradual_unfreezing(trained: Trained) -> None:
    stored = trained("gradual_unfreezing")
    run = stored.run
    # Boundaries 4, 3 and 1: at 1 there is nothing but embeddings to keep.
    spaces = [json.loads(path.read_text())["boundary"] for path in stored.states.glob("*/key.json")]
    assert sorted(spaces) == [3, 4]
    assert facts(run)["cache_encoded_rows"] == len({row["text"] for row in ROWS[:48]}) + len(
        {row["text"] for row in ROWS[48:]} - {row["text"] for row in ROWS[:48]}
    )


@pytest.mark.parametrize("change", ["seed", "rate", "head", "validation"])
def test_what_does_not_touch_the_states_finds_them(
    change: str, trained: Trained, bert: Path, tmp_path: Path, own_cache: Path
) -> None:
    trained().put(own_cache)
    sections: dict[str, Any] = {
        "seed": {"seed": 99},
        "rate": {"optim": {"num_train_epochs": 4, "learning_rate": 1e-2}},
        "head": {"task": {"label_smoothing": 0.1}},
        "validation": {"optim": {"num_train_epochs": 4, "per_device_eval_batch_size": 2}},
    }[change]
    assert facts(train(tmp_path / "second", bert, **sections))["cache_encoded_rows"] == 0


@pytest.mark.parametrize("change", ["weights", "text", "max_length", "boundary", "dtype", "pooling", "attention heads"])
def test_what_touches_the_states_misses(
    change: str, trained: Trained, bert: Path, tmp_path: Path, own_cache: Path
) -> None:
    first = trained().put(own_cache)
    checkpoint, sections, strategy, rows = bert, {}, "feature_extraction", ROWS
    if change in ("weights", "attention heads"):
        checkpoint = Path(shutil.copytree(bert, tmp_path / "checkpoint"))
    if change == "weights":
        state = load_file(checkpoint / "model.safetensors")
        name = next(name for name in state if name.endswith("layer.0.output.dense.weight"))
        state[name][0, 0] += 1e-3
        save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    elif change == "attention heads":
        config = json.loads((checkpoint / "config.json").read_text())
        config["num_attention_heads"] //= 2
        (checkpoint / "config.json").write_text(json.dumps(config))
    elif change == "text":
        rows = [{**row, "text": f"{row['text']} good"} for row in ROWS]
    elif change == "max_length":
        sections = {"data": {"max_length": 5}}
    elif change == "boundary":
        strategy = "top_layers"
    elif change == "dtype":
        sections = {"cache": {"dtype": "bf16"}}
    elif change == "pooling":
        sections = {"task": {"pooling": "own"}}
    second = train(tmp_path / "second", checkpoint, strategy, rows, **sections)
    if change == "max_length":
        # Only what is cut differs.
        assert 0 < facts(second)["cache_encoded_rows"] < facts(first)["cache_encoded_rows"]
    else:
        assert facts(second)["cache_encoded_rows"] > 0


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["feature_extraction", "top_layers"])
def test_losses_in_half_precision_stay_close(
    dtype: str, strategy: str, trained: Trained, bert: Path, tmp_path: Path
) -> None:
    optim = {"num_train_epochs": 2, "learning_rate": 1e-3}
    exact = trained(strategy, optim=optim).run
    half = train(tmp_path / "half", bert, strategy, optim=optim, cache={"dtype": dtype})
    assert losses(half) != losses(exact)
    assert losses(half) == pytest.approx(losses(exact), abs=1e-3)


@pytest.mark.parametrize("max_bytes", [1, 2500])
def test_beyond_the_budget_states_are_recomputed(
    max_bytes: int,
    trained: Trained,
    bert: Path,
    tmp_path: Path,
    own_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = trained(**UNCACHED).run
    run = train(tmp_path / "run", bert, cache={"max_bytes": max_bytes})
    assert facts(run)["cache_recomputed_rows"] > 0
    assert (facts(run)["cache_served_rows"] > 0) == (max_bytes > 1)
    assert losses(run) == pytest.approx(losses(plain), abs=1e-6)
    printed, kept = capsys.readouterr().out, sum(map(len, stored(own_cache).values()))
    assert facts(run)["cache_encoded_rows"] == kept
    assert ("rows found, 60 do not fit and are recomputed" in printed) == (max_bytes == 1)
    assert (f"rows found, {kept} encoded in " in printed) == (max_bytes > 1)
    assert "do not fit and are recomputed" in printed
    assert sum(path.stat().st_size for path in own_cache.rglob("states.bin")) <= max_bytes


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(
    bert: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cache.write_text("a file where the folder should be")
    run = train(tmp_path / "run", bert)
    printed = capsys.readouterr().out
    assert f"0 of 60 rows found, 60 cannot be stored and are recomputed ({own_cache}: Not a directory)" in printed
    assert (facts(run)["cache_served_rows"], run.metrics["training"]["steps"]) == (0, 24)
    assert facts(run)["cache_encoded_rows"] == 0


def test_a_model_that_would_give_other_numbers_runs_uncached(
    trained: Trained,
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = trained(**UNCACHED).run
    monkeypatch.setattr("hftransfer.caching.boundary.CHECK_TOLERANCE", -1.0)
    run = train(tmp_path / "run", bert)
    assert "no feature cache: BertForSequenceClassification differs by" in capsys.readouterr().out
    assert facts(run)["cache_served_rows"] == 0
    assert losses(run) == losses(plain)


def test_why_there_is_no_cache(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "once", bert, optim={"max_steps": 2})
    assert "no feature cache: the training data are seen but once" in capsys.readouterr().out
    albert = write_tiny_checkpoint(tmp_path / "albert", "albert")
    recipe = Recipe(
        checkpoint=str(albert),
        strategy={"type": "top_layers", "k": 1},
        optim={"max_steps": 2},
        output_dir=str(tmp_path / "shared"),
    )
    run = finetune(recipe, train=ROWS[:48], validation=ROWS[48:])
    assert "no feature cache: nothing but the embeddings is frozen" in capsys.readouterr().out
    assert facts(run)["cache_served_rows"] == 0


def test_all_boundaries_of_a_pass_share_one_budget(bert: Path, tmp_path: Path, own_cache: Path) -> None:
    whole = train(tmp_path / "whole", bert, "gradual_unfreezing")
    kept = [path.stat().st_size for path in own_cache.rglob("states.bin")]
    assert len({path.parents[1] for path in own_cache.rglob("states.bin")}) > 1, "one boundary shows nothing"
    shutil.rmtree(own_cache)
    run = train(tmp_path / "run", bert, "gradual_unfreezing", cache={"max_bytes": max(kept) + 10_000})
    assert sum(path.stat().st_size for path in own_cache.rglob("states.bin")) <= max(kept) + 10_000
    assert losses(run) == pytest.approx(losses(whole), abs=1e-6)


@pytest.mark.parametrize("place", ["train", "validation"])
def test_an_empty_text_is_the_same_from_the_cache_and_without_it(place: str, checkpoints: Path, tmp_path: Path) -> None:
    rows = {"train": [dict(row) for row in ROWS[:24]], "validation": [dict(row) for row in ROWS[24:36]]}
    rows[place][5]["text"] = ""
    runs = []
    for name, cache in (("cached", {}), ("plain", {"max_bytes": 0})):
        recipe = Recipe(
            checkpoint=str(checkpoints / "gpt2"),
            strategy="feature_extraction",
            cache=cache,
            optim={"max_steps": 6, "per_device_train_batch_size": 8},
            preflight="off",
            output_dir=str(tmp_path / name),
        )
        runs.append(finetune(recipe, **rows))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-6)
    assert runs[0].metrics["validation"] == pytest.approx(runs[1].metrics["validation"], abs=1e-6)


def test_the_time_saved_is_that_of_the_blocks_below_each_boundary(trained: Trained) -> None:
    states = trained("gradual_unfreezing").states
    seconds = {}
    for key in states.glob("*/key.json"):
        shards = [json.loads(path.read_text())["seconds"] for path in key.parent.glob("shard-*/meta.json")]
        seconds[json.loads(key.read_text())["boundary"]] = sum(shards)
    boundaries = sorted(seconds)
    assert len(boundaries) > 1
    for lower, higher in pairwise(boundaries):
        # One pass makes all of them; of three blocks the lower boundary spares one or two.
        assert seconds[lower] < 0.9 * seconds[higher]
