"""What the feature cache stores, each row once, and what a run says of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hftransfer import Run
from tests.cached_runs import ROWS, STRATEGIES, UNCACHED, facts, losses, stored, train

SAID_AT_THE_END = re.compile(
    r"^feature cache: states found for ([\d.]+)% of ([\d,]+) rows, ((?:encoding took )?)([\d.]+) s (?:saved|more than)",
    re.MULTILINE,
)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("strategy", ["feature_extraction", "gradual_unfreezing"])
def test_how_often_states_were_found_and_the_time_that_it_saved_are_said_at_the_end(
    strategy: str, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", bert, strategy, optim={"num_train_epochs": 4})
    (found,) = SAID_AT_THE_END.findall(capsys.readouterr().out)
    assert found[:2] == ("100.0", f"{facts(run)['cache_served_rows']:,.0f}")
    saved = facts(run)["cache_saved_seconds"]
    assert (float(found[3]), bool(found[2])) == (pytest.approx(abs(saved), abs=0.051), saved < 0)
    train(tmp_path / "plain", bert, strategy, optim={"num_train_epochs": 4}, **UNCACHED)
    assert not SAID_AT_THE_END.findall(capsys.readouterr().out)


def test_seeds_that_are_trained_at_once_say_it_for_all_of_them(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optim, evaluation = {"num_train_epochs": 4, "per_device_train_batch_size": 8}, {"every": 5}
    run = train(tmp_path / "run", bert, optim=optim, evaluation=evaluation, seeds=3)
    parts = [facts(Run(path)) for path in sorted((run.folder / "seeds").iterdir())]
    # 24 steps: four passes over 48 rows, and five evaluations on 12; some rows more are compared at the start.
    assert [part["cache_served_rows"] for part in parts] == [pytest.approx(4 * 48 + 5 * 12, abs=4)] * 3
    # The first one encodes, as where they are trained one by one.
    assert [part["cache_encoded_rows"] for part in parts] == [60, 0, 0]
    assert [part["cache_encoding_seconds"] > 0 for part in parts] == [True, False, False]
    assert parts[0]["cache_saved_seconds"] < parts[1]["cache_saved_seconds"] == parts[2]["cache_saved_seconds"]
    (found,) = SAID_AT_THE_END.findall(capsys.readouterr().out)
    assert found[1] == f"{sum(part['cache_served_rows'] for part in parts):,}"


def test_what_a_space_has_is_not_stored_there_again(
    bert: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRATEGIES, "top_layers", {"k": 1})
    # The pooling is a part of the key, and each strategy has a default of its own.
    train(tmp_path / "first", bert, "top_layers", task={"pooling": "own"})
    before = stored(own_cache)
    assert list(before) == [3]
    # One pass, cut at the boundaries 4 and 3.
    train(tmp_path / "second", bert, "gradual_unfreezing", task={"pooling": "own"})
    after = stored(own_cache)
    assert sorted(after[3]) == sorted(before[3])
    assert set(after[4]) == set(before[3])
    assert len(after[4]) == len(before[3])


def test_a_text_of_two_splits_is_encoded_and_stored_once(bert: Path, tmp_path: Path, own_cache: Path) -> None:
    run = train(tmp_path / "run", bert, rows=ROWS[:48] + ROWS[:12])
    distinct = len({row["text"] for row in ROWS[:48]})
    assert len(stored(own_cache)[4]) == distinct
    assert facts(run)["cache_encoded_rows"] == distinct


def test_states_beyond_half_precision_are_recomputed(
    bert: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = Path(shutil.copytree(bert, tmp_path / "large"))
    state = load_file(large / "model.safetensors")
    name = next(name for name in state if name.endswith("layer.2.output.LayerNorm.weight"))
    state[name][0] = 1e5
    save_file(state, large / "model.safetensors", metadata={"format": "pt"})
    optim, task = {"num_train_epochs": 2, "learning_rate": 1e-6}, {"pooling": "own"}
    plain = train(tmp_path / "plain", large, optim=optim, task=task, **UNCACHED)
    capsys.readouterr()
    half = train(tmp_path / "half", large, optim=optim, task=task, cache={"dtype": "fp16"})
    left = 60 - len(stored(own_cache)[4])
    assert 0 < left < 60
    assert facts(half)["cache_recomputed_rows"] > 0
    printed = capsys.readouterr().out
    said = f"(the states of {left} are not finite in fp16: choose bf16 or fp32 for cache.dtype)"
    assert f"0 of 60 rows found, {60 - left} encoded in " in printed
    assert f" s, {left} cannot be stored and are recomputed {said}" in printed
    # Logits of some ten thousands, of which those from stored states are good to three digits.
    assert losses(half) == pytest.approx(losses(plain), rel=1e-2)
