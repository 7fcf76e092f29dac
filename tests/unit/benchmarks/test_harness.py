"""Turns, tuning, skipping and failing, with processes that pretend."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest

from benchmarks import harness, machine
from benchmarks.cases import Case, Contestant
from benchmarks.contestants.common import Spec
from benchmarks.harness import (
    MAX_SECONDS,
    TRIAL_MULTIPLE,
    TRIAL_SECONDS,
    Harness,
    command_line,
    environment,
    interpreter_with,
    run_process,
)


@pytest.fixture
def bench(tmp_path):
    data = tmp_path / "some_texts"
    data.mkdir()
    for split in ("train", "validation", "test"):
        texts = [f"{split} text number {index}" for index in range(40)]
        pd.DataFrame({"text": texts, "label": [0, 1] * 20}).to_parquet(data / f"{split}.parquet")
    return Harness(tmp_path / "model", data, tmp_path / "out", repeats=2, examples=20, command="python -m benchmarks")


limits = []
"""The seconds that each of the `calls` was given."""


@pytest.fixture
def calls(monkeypatch):
    """Every process that would have been run; a batch of 8 pretends to be the fastest."""
    made = []
    limits.clear()

    def pretend(python, module, spec, folder, limit):
        limits.append(limit)
        made.append((module, dict(spec.settings), spec))
        if spec.settings.get("fails"):
            return {"others": 0.0, "marked": False, "error": "no luck", "seconds": None}
        return {"others": 0.1, "marked": True, "error": None, "seconds": float(spec.settings.get("batch", 1))}

    monkeypatch.setattr(harness, "run_process", pretend)
    return made


def names_of(calls):
    return [module.rpartition(".")[2] for module, _, _ in calls]


def test_contestants_take_turns_and_results_are_kept(bench, calls, capsys):
    case = Case("demo", "Demo", (Contestant("A", "a", {}), Contestant("B", "b", {"fails": True})))
    result = json.loads(bench.run(case).read_text())
    assert names_of(calls) == ["a", "b", "b", "a"]
    assert [(one["contestant"], one["round"]) for one in result["samples"]] == [("A", 0), ("B", 0), ("B", 1), ("A", 1)]
    assert [one["error"] for one in result["samples"]] == [None, "no luck", "no luck", None]
    assert [spec.seed for _, _, spec in calls] == [13, 13, 14, 14]
    assert (result["data_set"], result["examples"]) == ("some_texts", 20)
    printed = capsys.readouterr().out
    assert "demo  round 1/2  A  1.00 s  others 10.0%  (disturbed)" in printed
    assert "failed: no luck" in printed
    assert [path.name for path in bench.out.iterdir()] == ["demo.json"], "nothing but the result is left"


def test_the_fastest_candidate_is_used_and_recorded(bench, calls):
    tuned = Contestant("A", "a", {"epochs": 3}, candidates=({"batch": 32}, {"batch": 8}, {"fails": True}))
    result = json.loads(bench.run(Case("demo", "Demo", (tuned,))).read_text())
    assert [(one["epochs"], one.get("batch")) for _, one, _ in calls] == [
        *((1, 32), (1, 8), (1, None), (1, 8), (1, 32)),
        *((3, 8), (3, 8)),
    ], "a candidate that failed is not tried again"
    spared = [TRIAL_SECONDS + TRIAL_MULTIPLE * fastest for fastest in (MAX_SECONDS, 32, 8, 8, 8)]
    assert limits == [*spared, MAX_SECONDS, MAX_SECONDS]
    choice = result["choices"]["A"]
    assert choice["settings"] == {"batch": 8}
    assert [trial["seconds"] for trial in choice["trials"]] == [32.0, 8.0, None]
    assert [trial["error"] for trial in choice["trials"]] == [None, None, "no luck"]


def test_warm_contestants_keep_their_folder_and_a_first_round_does_not_count(bench, calls):
    result = json.loads(bench.run(Case("demo", "Demo", (Contestant("A", "a", {}),), warm=True)).read_text())
    assert len(result["samples"]) == 2
    assert len(calls) == 3
    assert len({spec.folder for _, _, spec in calls}) == 1


def test_cold_contestants_never_see_a_folder_again(bench, calls):
    bench.run(Case("demo", "Demo", (Contestant("A", "a", {}),)))
    assert len({spec.folder for _, _, spec in calls}) == 2


def test_a_missing_peer_is_skipped_with_one_line(bench, calls, capsys):
    case = Case("demo", "Demo", (Contestant("A", "a", {}), Contestant("B", "b", {}, needs="no_such_package")))
    result = json.loads(bench.run(case).read_text())
    assert names_of(calls) == ["a", "a"]
    assert "no_such_package is not installed" in result["skipped"]["B"]
    assert capsys.readouterr().out.count("skipped") == 1


def test_sizes_are_multiples_of_the_examples(bench, calls):
    case = Case("demo", "Demo", tuple(Contestant(f"{times}", "a", {}, examples=times) for times in (0.5, 4)))
    result = json.loads(bench.run(case).read_text())
    assert [one["examples"] for one in result["samples"]] == [10, 80, 80, 10]


def spec_in(folder):
    paths = {"checkpoint": "c", "train": "t", "validation": "v", "test": "e", "folder": str(folder)}
    return Spec(**paths, seed=1, spawned=0.0, settings={}, result=str(folder / "result.json"))


def test_a_process_that_dies_leaves_its_last_line(tmp_path):
    sample = run_process(sys.executable, "benchmarks.no_such_contestant", spec_in(tmp_path), tmp_path)
    assert sample["seconds"] is None
    assert "No module named benchmarks.no_such_contestant" in sample["error"]
    assert sample["marked"] == machine.is_marked(sample["others"])


def test_a_process_without_a_result_has_failed(tmp_path):
    sample = run_process(sys.executable, "benchmarks", spec_in(tmp_path), tmp_path)
    assert "invalid choice" in sample["error"]


def test_processes_have_caches_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    found = environment(tmp_path)
    assert "ACCELERATE_MIXED_PRECISION" not in found
    assert found["HFTRANSFER_CACHE"] == str(tmp_path / "cache")
    assert found["HF_HUB_OFFLINE"] == "1"


def test_interpreter_is_the_first_that_has_the_package():
    assert interpreter_with("json", [None, sys.executable]) == sys.executable
    assert interpreter_with("", [sys.executable]) == sys.executable
    assert interpreter_with("no_such_package", [sys.executable, None]) is None


def test_command_shows_no_path_of_this_machine():
    given = ["run", "full", "--checkpoint", "/some/where/model", "--data=/some/where", "--repeats", "3"]
    shown = command_line(given, {"--checkpoint": "CHECKPOINT", "--data": "DATA"})
    assert shown == "python -m benchmarks run full --checkpoint CHECKPOINT --data=DATA --repeats 3"
