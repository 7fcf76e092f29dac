"""`hftransfer advise` and `hftransfer rank`, on tiny random models: plumbing, never quality."""

from __future__ import annotations

import csv
import json

import pytest

from hftransfer.cli.main import main
from tests.tiny_models import WORDS


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(40):
            words = [WORDS[(number * step) % len(WORDS)] for step in (1, 3, 7)]
            writer.writerow([" ".join(["good" if number % 2 else "bad", *words]), ("no", "yes")[number % 2]])
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.mark.parametrize("json_asked", [False, True])
def test_advice_names_a_strategy_and_why(rows, checkpoints, capsys, tmp_path, json_asked):
    flags = ["--json"] if json_asked else []
    before = set(tmp_path.iterdir())
    code = run("advise", "text_classification", "--checkpoint", checkpoints / "bert", "--data.train", rows, *flags)
    assert code == 0
    assert set(tmp_path.iterdir()) == before
    out = capsys.readouterr().out
    if not json_asked:
        assert "Recommended: " in out
        assert "The tutorial's table says" in out
        assert "linear head" in out
        return
    found = json.loads(out)
    names = [option["name"] for option in found["options"]]
    assert found["recommended"] in names
    assert found["facts"]["train_examples"] == 36
    assert found["facts"]["classes"] == {"no": 18, "yes": 18}
    assert len(found["reading"]["layers"]) == 4
    assert all(option["seconds"] > 0 and option["memory_bytes"] > 0 for option in found["options"])
    predicted = [option for option in found["options"] if option["score"] is not None]
    assert len(predicted) == len(found["options"]) > 6
    assert not any("schedule that was set" in sentence for sentence in found["words"])
    assert all(one["interval"][0] <= one["score"] <= one["interval"][1] for one in predicted)


def test_a_schedule_that_the_user_chose_is_said_to_be_short(rows, checkpoints, capsys):
    chosen = ["--optim.num_train_epochs", "2", "--json"]
    code = run("advise", "text_classification", "--checkpoint", checkpoints / "bert", "--data.train", rows, *chosen)
    assert code == 0
    words = json.loads(capsys.readouterr().out)["words"]
    assert any("the schedule that was set makes 4." in sentence for sentence in words)


@pytest.mark.parametrize(
    ("flags", "offered"),
    [
        ([], True),
        (["--optim.gradient_accumulation_steps", "2"], False),
        (["--evaluation.every", "10"], False),
    ],
)
def test_pairs_are_offered_where_they_can_be_formed(rows, checkpoints, capsys, flags, offered):
    command = ["advise", "text_classification", "--checkpoint", checkpoints / "bert", "--data.train", rows, "--json"]
    assert run(*command, *flags) == 0
    options = {option["name"]: option for option in json.loads(capsys.readouterr().out)["options"]}
    assert ("contrastive" in options) == offered
    if offered:
        assert options["contrastive"]["seconds"] > 0


def test_another_task_gets_facts_and_an_honest_note(checkpoints, capsys, tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [{"text": ["a", "film", WORDS[at]], "label": ["O", "O", "B-x"]} for at in range(20)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code = run("advise", "token_classification", "--checkpoint", checkpoints / "bert", "--data.train", path)
    assert code == 0
    out = capsys.readouterr().out
    assert "is not measured" in out
    assert "Recommended" not in out


def test_checkpoints_are_ranked(rows, checkpoints, capsys):
    named = [checkpoints / "bert", checkpoints / "gpt2"]
    assert run("rank", *named, "--data.train", rows) == 0
    assert "suits the data best" in capsys.readouterr().out
    assert run("rank", *named, "--data.train", rows, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["checkpoint"] for one in found} == set(map(str, named))
    assert found[0]["best_layer_score"] >= found[1]["best_layer_score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "BERT", "--data.train", "ROWS"], "one checkpoint cannot be ranked"),
        (["rank", "BERT", "/nowhere", "--data.train", "ROWS"], "no such folder"),
        (["rank", "BERT", "BERT", "--checkpoint", "BERT", "--data.train", "ROWS"], "no place in a ranking"),
        (["rank", "BERT", "BERT", "--data.train", "ROWS", "--data.label", "stars"], "stars"),
        (["advise", "text_classification", "--checkpoint", "BERT"], "no training data"),
    ],
)
def test_mistakes_are_one_line(rows, checkpoints, capsys, arguments, message):
    known = {"BERT": checkpoints / "bert", "ROWS": rows}
    assert run(*[known.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
