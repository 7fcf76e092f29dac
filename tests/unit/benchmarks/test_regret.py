from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import records, regret, regret_table
from benchmarks.regret import Cell, read_rows
from benchmarks.regret_table import POLICIES, collect, complete, document, fitted, regrets, without
from hftransfer.advise.candidates import candidates

SEEN = {
    "chance": 0.5,
    "head": 0.7,
    "best_layer": 0.75,
    "slope": 0.02,
    "classes": 2,
    "foreign": False,
    "layers": [0, 1, 2],
}


def write_results(folder, best="lora", data_sets=("a", "b", "c")):
    """Results in which one strategy is the best by 10 points everywhere."""
    for number, data_set in enumerate(data_sets):
        for seed in (1, 2):
            key = {"data_set": data_set, "examples": 500, "checkpoint": "tiny", "seed": seed}
            head = 0.6 + 0.05 * number
            records.add(folder / "measured.jsonl", {**key, **SEEN, "train_examples": 450, "head": head})
            for one in candidates(2, 450):
                score = head + 0.1 * (one.type == best)
                line = {**key, "candidate": one.name, "score": score, "training_seconds": 1.0}
                records.add(folder / "scores.jsonl", line)
    return collect(folder)


def test_an_advisor_that_can_know_has_no_regret(tmp_path):
    found = regrets(write_results(tmp_path))
    assert len(found) == 6
    for own in found.values():
        assert own["advisor"] == pytest.approx(0.0)
        assert own["always full fine-tuning"] == pytest.approx(0.1)
        assert own["tutorial's table"] == pytest.approx(own["always feature extraction"])


def test_no_rule_has_seen_the_data_set_that_it_is_scored_on(tmp_path, monkeypatch):
    asked = []
    original = regret_table.weights_of
    monkeypatch.setattr(
        regret_table, "weights_of", lambda found: asked.append({o.key[0] for o in found}) or original(found)
    )
    regrets(write_results(tmp_path))
    assert sorted(map(sorted, asked)) == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert {one.key[0] for one in without(collect(tmp_path), "a")} == {"b", "c"}


def test_weights_go_into_a_module_and_come_back(tmp_path):
    found = write_results(tmp_path)
    knowledge = fitted(found)
    names: dict[str, object] = {}
    exec(regret_table.source_of(knowledge, found), names)
    assert names["KNOWLEDGE"] == knowledge
    assert knowledge.sizes == (450, 450)
    assert {one.kind for one in candidates(2, 450)} == set(knowledge.kinds)


def test_the_page_names_every_policy_and_cell(tmp_path):
    page = document(write_results(tmp_path))
    for name in (*POLICIES, "| a | 500 | tiny | 2 |", "--checkpoint TINY"):
        assert name in page


def test_incomplete_cells_and_cut_lines_are_left_out(tmp_path):
    write_results(tmp_path)
    path = tmp_path / "scores.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-10], encoding="utf-8")
    assert len(complete(collect(tmp_path))) == 5
    records.add(path, json.loads(text.splitlines()[-1]))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines == text.splitlines()


def test_seeds_draw_other_rows_and_test_rows_stay(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    generator = np.random.default_rng(0)
    texts = [f"text {number}" for number in range(300)]
    frame = pd.DataFrame({"text": texts, "label": generator.choice(["x", "y"], 300)})
    frame[:250].to_parquet(folder / "train.parquet")
    frame[240:].to_parquet(folder / "test.parquet")
    (one, test), (other, again) = (read_rows(tmp_path, Cell("sst2", 60), seed) for seed in (1, 2))
    assert test == again
    assert one != other
    assert len(one) == 60
    assert not {row["text"] for row in one} & {row["text"] for row in test}


def test_a_class_that_was_not_drawn_has_no_test_rows(tmp_path):
    (tmp_path / "sst2").mkdir()
    texts = [f"text {number}" for number in range(300)]
    frame = pd.DataFrame({"text": texts, "label": ["x", "y"] * 150})
    train = pd.concat([frame[:250], pd.DataFrame({"text": ["rare"], "label": ["z"]})])
    train.to_parquet(tmp_path / "sst2" / "train.parquet")
    pd.concat([frame[250:], pd.DataFrame({"text": ["rarer"], "label": ["z"]})]).to_parquet(
        tmp_path / "sst2" / "test.parquet"
    )
    rows, test = read_rows(tmp_path, Cell("sst2", 251), 1)
    assert {row["label"] for row in rows} == {row["label"] for row in test} == {"x", "y"}
    assert len(test) == 50


def test_cells_are_read_as_they_are_written():
    assert Cell.parse("trec6:500@DIR") == Cell("trec6", 500, "DIR")
    with pytest.raises(argparse.ArgumentTypeError, match="DATA:EXAMPLES"):
        Cell.parse("trec6")
    assert set(regret.DATA_SETS) >= {"sst2", "trec6"}
