"""From data files to a folder that transformers alone loads, on a tiny random BERT: plumbing, not quality."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import softmax

from hftransfer import Recipe, Run, evaluate, finetune, predict
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection
from hftransfer.tasks.text_classification import TextClassificationTask
from tests.running import command
from tests.tiny_models import WORDS, write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
GENRES = ["comedy", "drama", "horror"]
TEXTS = ["good film", "the dog was sad , very sad and boring", "a", "red blue green", "you loved this place"]
# Loads folders with transformers alone and prints logits and pipeline answers as JSON.
FRESH_PROCESS = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

texts, found = json.loads(sys.argv[1]), []
for folder in sys.argv[2:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in texts]
    answers = pipeline("text-classification", model=folder, top_k=None)(texts)
    found.append({"logits": logits, "answers": answers})
assert "hftransfer" not in sys.modules
print(json.dumps(found))
"""


def rows(problem: str, count: int) -> list[dict[str, Any]]:
    """Examples of varied length whose label follows from their words."""
    random = np.random.default_rng(count)
    made = []
    for index in range(count):
        words = [WORDS[number] for number in random.integers(0, 60, size=1 + index % 9)]
        row: dict[str, Any] = {"id": index, "text": " ".join(words)}
        if problem == "single":
            row["label"] = GENRES[index % 3]
        elif problem == "pair":
            row |= {"other": " ".join(words[::-1]), "label": ["no", "yes"][index % 2]}
        elif problem == "multi":
            row["label"] = [GENRES[0]] * (index % 2) + [GENRES[2]] * (index % 3 > 0) + [GENRES[1]] * (index % 5 == 0)
        else:
            row["label"] = index / 7 + 0.25
        made.append(row)
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), "bert")


@pytest.fixture(scope="module")
def make_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Trains through the command line, each kind of run once for the whole module."""
    made: dict[tuple[str, ...], Run] = {}

    def make(problem: str, *flags: str) -> Run:
        if (problem, *flags) not in made:
            folder = tmp_path_factory.mktemp(problem)
            for split, count in (("train", 60), ("validation", 12), ("test", 15)):
                text = "".join(json.dumps(row) + "\n" for row in rows(problem, count))
                (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
            config = {
                "checkpoint": str(checkpoint),
                "data": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
                "optim": {"num_train_epochs": 2},
                "output_dir": str(folder / "run"),
            }
            if problem == "pair":
                config["data"]["text_pair"] = "other"
            (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            assert command("run", "text_classification", "--config", str(folder / "config.yaml"), *flags) == 0
            made[(problem, *flags)] = Run(folder / "run")
        return made[(problem, *flags)]

    return make


@pytest.mark.parametrize(
    ("problem", "flags", "metric"),
    [
        ("single", ("--strategy.type", "feature_extraction"), "accuracy"),
        ("single", ("--strategy", "lora", "--strategy.r", "4"), "accuracy"),
        ("pair", (), "accuracy"),
        ("multi", (), "f1_macro"),
        ("regression", (), "spearman"),
    ],
)
def test_a_run_leaves_everything_behind(
    make_run: Callable[..., Run], problem: str, flags: tuple[str, ...], metric: str
) -> None:
    run = make_run(problem, *flags)
    assert {"recipe.yaml", "log.jsonl", "metrics.json", "model"} <= {path.name for path in run.folder.iterdir()}
    assert run.recipe.optim.num_train_epochs == 2
    assert run.recipe.evaluation.metric == metric
    assert run.log
    assert metric in run.metrics["validation"]
    assert run.metrics["test"].keys() == run.metrics["validation"].keys()
    config = json.loads((run.model_folder / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    if problem == "multi":
        assert set(config["label_thresholds"]) == set(GENRES)
        assert config["problem_type"] == "multi_label_classification"
    if problem == "single":
        assert config["label2id"] == {name: index for index, name in enumerate(GENRES)}


def test_transformers_alone_loads_the_model(make_run: Callable[..., Run], tmp_path: Path) -> None:
    runs = [
        make_run("single", "--strategy.type", "feature_extraction"),
        make_run("single", "--strategy", "lora", "--strategy.r", "4"),
    ]
    arguments = [sys.executable, "-c", FRESH_PROCESS, json.dumps(TEXTS), *(str(run.model_folder) for run in runs)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for run, found in zip(runs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        ours = predict(run, TEXTS)
        expected_NC = np.array([list(record["probabilities"].values()) for record in ours])
        np.testing.assert_allclose(softmax(np.array(found["logits"]), axis=-1), expected_NC, atol=1e-4)
        for record, answers in zip(ours, found["answers"], strict=True):
            assert answers[0]["label"] == record["prediction"]
            for answer in answers:
                assert answer["score"] == pytest.approx(record["probabilities"][answer["label"]], abs=1e-4)


def test_logits_are_those_of_transformers(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """As above for the raw logits, which softmax would let drift by a constant."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    seen: list[Any] = []
    decode = TextClassificationTask.decode

    def keep(self: Any, predictions_NP: Any, features: Any) -> Any:
        seen.append(predictions_NP)
        return decode(self, predictions_NP, features)

    monkeypatch.setattr(TextClassificationTask, "decode", keep)
    for flags in (("--strategy.type", "feature_extraction"), ("--strategy", "lora", "--strategy.r", "4")):
        run = make_run("single", *flags)
        predict(run, TEXTS)
        model = AutoModelForSequenceClassification.from_pretrained(run.model_folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
        with torch.inference_mode():
            logits = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
        np.testing.assert_allclose(seen[-1], np.stack(logits), atol=1e-4)


@pytest.mark.parametrize(
    "flags", [("--strategy.type", "feature_extraction"), ("--strategy", "lora", "--strategy.r", "4")]
)
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_predictions_keep_the_order(make_run: Callable[..., Run], flags: tuple[str, ...], batch_size: int) -> None:
    run = make_run("single", *flags)
    together = predict(run.folder, TEXTS, batch_size=batch_size)
    for text, record in zip(TEXTS, together, strict=True):
        (alone,) = predict(run.model_folder, [text])
        assert alone["prediction"] == record["prediction"]
        assert alone["probabilities"] == pytest.approx(record["probabilities"], abs=1e-5)
    assert len({tuple(record["probabilities"].values()) for record in together}) == len(TEXTS)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_predict_writes_a_file(make_run: Callable[..., Run], tmp_path: Path, problem: str, suffix: str) -> None:
    flags = ("--strategy.type", "feature_extraction") if problem == "single" else ()
    run, source, output = make_run(problem, *flags), tmp_path / "in.csv", tmp_path / f"out{suffix}"
    pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS}).to_csv(source, index=False)
    assert command("predict", str(run.folder), "--input", str(source), "--output", str(output)) == 0
    readers: dict[str, Callable[..., pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }
    frame, expected = readers[suffix](output), predict(run, TEXTS)
    assert frame["text"].tolist() == TEXTS
    assert [int(number) for number in frame["id"]] == list(range(len(TEXTS)))
    if problem == "regression":
        assert list(frame["prediction"]) == pytest.approx([record["prediction"] for record in expected], abs=1e-5)
        return
    found = [json.loads(one) if suffix == ".csv" and problem == "multi" else one for one in frame["prediction"]]
    assert [list(one) if problem == "multi" else one for one in found] == [one["prediction"] for one in expected]
    for name in GENRES:
        wanted = [record["probabilities"][name] for record in expected]
        column = frame[f"probability_{name}"] if suffix == ".csv" else [one[name] for one in frame["probabilities"]]
        assert list(column) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "flags"),
    [("single", ("--strategy", "lora", "--strategy.r", "4")), ("pair", ()), ("multi", ()), ("regression", ())],
)
def test_evaluate_gives_the_scores_of_the_run(
    make_run: Callable[..., Run], tmp_path: Path, problem: str, flags: tuple[str, ...]
) -> None:
    run, output = make_run(problem, *flags), tmp_path / "scores.json"
    test, pair = str(run.recipe.data.test), run.recipe.data.text_pair
    expected = {name: score for name, score in run.metrics["test"].items() if score is not None}
    scores = evaluate(run, DataSection(test=test, text_pair=pair))
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    columns = ("--data.text_pair", pair) if pair else ()
    assert command("evaluate", str(run.folder), "--data.test", test, *columns, "--output", str(output)) == 0
    written = json.loads(output.read_text(encoding="utf-8"))
    assert {name: written[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_the_recipe_of_a_run_reproduces_it(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("single", "--strategy", "lora", "--strategy.r", "4")
    again = tmp_path / "again"
    recipe = str(run.folder / "recipe.yaml")
    assert command("run", "text_classification", "--config", recipe, "--output_dir", str(again)) == 0
    assert Run(again).recipe == run.recipe.model_copy(update={"output_dir": str(again)})
    assert Run(again).metrics["test"] == pytest.approx(run.metrics["test"], abs=1e-6)


def test_a_used_folder_is_refused_unless_overwritten(make_run: Callable[..., Run], tmp_path: Path, capsys: Any) -> None:
    run = make_run("regression")
    arguments = ["run", "text_classification", "--config", str(run.folder.parent / "config.yaml")]
    before = (run.folder / "metrics.json").stat().st_mtime_ns
    assert command(*arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run.folder / "metrics.json").stat().st_mtime_ns == before
    (run.folder / "leftover").write_text("of the first run")
    assert command(*arguments, "--overwrite", "--optim.max_steps", "1") == 0
    assert not (run.folder / "leftover").exists()
    assert run.recipe.optim.max_steps == 1
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert command(*arguments, "--overwrite", "--output_dir", str(precious)) == 2
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("flag", ["--data.text", "--data.label", "--evaluation.metric", "--data.max_length"])
def test_a_failed_run_leaves_no_folder(
    make_run: Callable[..., Run], tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_run("single", "--strategy.type", "feature_extraction").folder.parent / "config.yaml"
    output, value = tmp_path / "out", "99999" if flag == "--data.max_length" else "absent"
    arguments = ["--config", str(config), "--output_dir", str(output), flag, value]
    assert command("run", "text_classification", *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not output.exists()


def test_the_recipe_runs_as_a_file(make_run: Callable[..., Run], tmp_path: Path) -> None:
    config = make_run("single", "--strategy.type", "feature_extraction").folder.parent / "config.yaml"
    file = str(ROOT / "recipes" / "text_classification.py")
    arguments = [sys.executable, file, "--config", str(config), "--output_dir", str(tmp_path / "out")]
    flags = ["--optim.max_steps", "1", "--strategy.type", "bitfit"]
    done = subprocess.run([*arguments, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "out")
    assert (run.recipe.strategy.type, run.recipe.optim.max_steps) == ("bitfit", 1)
    table = " ".join(done.stdout.replace("│", " ").split())
    assert "strategy.type bitfit flag" in table
    assert "optim.num_train_epochs 2 YAML (config.yaml)" in table
    assert "seed 13 default" in table


def test_python_in_five_lines(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(rows("single", 30))
    recipe = Recipe(checkpoint=str(checkpoint), strategy="lora", optim={"num_train_epochs": 1})
    run = finetune(recipe, train=frame)
    (record,) = predict(run, ["good film"])
    assert record["prediction"] in GENRES
    assert sum(record["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert run.folder.parent == Path("runs")


def test_what_cannot_be_predicted_is_refused(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("single", "--strategy.type", "feature_extraction")
    for texts in ("one text", ["a", None]):
        with pytest.raises(DataError, match="not a list of strings"):
            predict(run, texts)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the model reads single texts"):
        predict(run, ["a"], text_pair="other")
    with pytest.raises(DataError, match="no column 'other'"):
        predict(run, data=[{"text": "a"}], text="other")
    assert predict(run, []) == []
    (tmp_path / "in.csv").write_text("text,prediction\ngood film,comedy\n")
    files = ["--input", str(tmp_path / "in.csv"), "--output"]
    for output in (tmp_path / "out.csv", tmp_path / "out.xls", tmp_path / "absent" / "out.csv"):
        assert command("predict", str(run.folder), *files, str(output)) == 2
        assert not output.exists()
