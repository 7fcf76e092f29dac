"""What a run leaves behind for its reader: report, intervals, comparisons, seeds and sweeps; it opens offline."""

from __future__ import annotations

import csv
import html
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hftransfer import Recipe, Run, finetune, predict
from tests.running import command, flags, write_rows

BAD_LABEL, BAD_TEXT = '<b>rotten</b> & "sad"', "<script>document.title='taken'</script> bad film </td>"


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Films: every fifth label is wrong, and some texts and one label are HTML."""
    made = []
    for row in range(start, start + count):
        good = row % 2 == 0
        text = f"{'great' if good else BAD_TEXT} film {row}"
        made.append({"text": text, "label": "fresh" if good != (row % 5 == 0) else BAD_LABEL})
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("films")
    sizes = {"train": 48, "validation": 24, "test": 40}
    return {name: str(write_rows(folder / f"{name}.jsonl", rows(count))) for name, count in sizes.items()}


def recipe(checkpoints: Path, files: dict[str, str], folder: Path, strategy: str, **settings: Any) -> Recipe:
    optim = {"num_train_epochs": 2, "per_device_train_batch_size": 16}
    return Recipe(
        checkpoint=str(checkpoints / "bert"),
        data=files,
        strategy=strategy,
        optim=optim,
        output_dir=str(folder),
        **settings,
    )


@pytest.fixture(scope="module")
def at_once(checkpoints: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three seeds of feature extraction, their heads trained in one pass."""
    folder = tmp_path_factory.mktemp("runs") / "at_once"
    return finetune(recipe(checkpoints, files, folder, "feature_extraction", seeds=3, report_examples=True))


@pytest.fixture(scope="module")
def one_by_one(checkpoints: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two seeds of full fine-tuning."""
    folder = tmp_path_factory.mktemp("runs") / "one_by_one"
    return finetune(recipe(checkpoints, files, folder, "full_fine_tuning", seeds=[3, 4]))


def test_several_seeds_leave_one_run_with_the_chosen_model(at_once: Run, one_by_one: Run) -> None:
    for run, seeds in ((at_once, [13, 14, 15]), (one_by_one, [3, 4])):
        spread = run.metrics["seeds"]
        assert list(spread["values"]) == list(map(str, seeds))
        assert not list(run.folder.glob("seeds/*/model"))
        by_seed = {seed: Run(run.folder / "seeds" / str(seed)) for seed in seeds}
        values = {seed: part.metrics["validation"]["accuracy"] for seed, part in by_seed.items()}
        assert values[spread["chosen"]] == max(values.values())
        tested = [part.metrics["test"]["accuracy"] for part in by_seed.values()]
        about = spread["test"]["accuracy"]
        assert about["mean"] == pytest.approx(sum(tested) / len(tested))
        assert about["interval"][0] <= about["mean"] <= about["interval"][1]
        assert {"lead_on_validation", "lead_on_test", "optimism"} < set(spread["best_of"])
        assert run.metrics["test"] == by_seed[spread["chosen"]].metrics["test"]
        card = (run.model_folder / "README.md").read_text(encoding="utf-8")
        assert f"Of {len(seeds)} trainings with seeds {', '.join(map(str, seeds))} this is" in card
        assert f"that of seed {spread['chosen']}, chosen by accuracy on the validation data" in card
        assert f"a mean of {about['mean']:.4f} and a standard deviation of {about['sd']:.4f}" in card
        assert "One training" not in card
        found = predict(run, [row["text"] for row in rows(40)])
        right = [one["prediction"] == row["label"] for one, row in zip(found, rows(40), strict=True)]
        assert sum(right) / 40 == pytest.approx(run.metrics["test"]["accuracy"])
        # A seed's recipe repeats its training: the splits are those of `seed`, the rest that of `seeds`.
        assert by_seed[seeds[-1]].recipe.training_seeds == (seeds[-1],)
        assert by_seed[seeds[-1]].recipe.seed == 13


def test_heads_that_are_trained_at_once_are_those_of_single_runs(
    checkpoints: Path, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, which is drawn in another way, seed by seed and all at once give the same scores."""
    from tests.tiny_models import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "bert", "bert", dropout=0.0)
    folders = [tmp_path / "both", tmp_path / "single"]
    both = finetune(recipe(tmp_path, files, folders[0], "feature_extraction", seeds=[7, 8]))
    single = finetune(recipe(tmp_path, files, folders[1], "feature_extraction", seeds=[8]))
    of_both, alone = ([one for one in run.log if "loss" in one] for run in (Run(both.folder / "seeds" / "8"), single))
    assert [one["step"] for one in of_both] == [one["step"] for one in alone]
    assert [one["loss"] for one in of_both] == pytest.approx([one["loss"] for one in alone], abs=1e-4)
    found, expected = (run.metrics["validation"] for run in (Run(both.folder / "seeds" / "8"), single))
    assert found["roc_auc"] == pytest.approx(expected["roc_auc"], abs=1e-3)


def test_of_equal_evaluations_heads_at_once_keep_the_later_one_as_a_single_run_does(
    files: dict[str, str], tmp_path: Path
) -> None:
    from tests.tiny_models import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "bert", "bert", dropout=0.0)
    few = {**files, "validation": str(write_rows(tmp_path / "few.jsonl", rows(3)))}
    evaluation = {"keep": "best", "every": 1, "metric": "accuracy"}
    both, single = (
        finetune(recipe(tmp_path, few, tmp_path / name, "feature_extraction", seeds=seeds, evaluation=evaluation))
        for name, seeds in (("both", [7, 8]), ("single", [8]))
    )
    of_both = Run(both.folder / "seeds" / "8")
    scores = [one["validation_accuracy"] for one in of_both.log if "validation_accuracy" in one]
    assert scores.count(max(scores)) > 1, "without equal scores nothing is shown"
    last = max(at for at, score in enumerate(scores, 1) if score == max(scores))
    assert of_both.metrics["training"]["best_step"] == single.metrics["training"]["best_step"] == last


def test_metrics_hold_intervals_baselines_and_calibration(at_once: Run) -> None:
    metrics = at_once.metrics
    low, high = metrics["intervals"]["test"]["accuracy"]
    assert low <= metrics["test"]["accuracy"] <= high
    assert high - low < 0.4
    assert set(metrics["intervals"]["test"]) >= {"accuracy", "f1_macro", "mcc", "f1/fresh"}
    names = list(metrics["baselines"])
    assert names[0].startswith("majority")
    assert names[1] == "TF-IDF + logistic regression"
    assert metrics["calibration"]["note"] == "24 decisions on validation data are fewer than 100"
    assert metrics["calibration"]["splits"]["test"]["after"]["error"] >= 0


def test_no_text_is_kept_unless_it_is_asked_for(at_once: Run, one_by_one: Run) -> None:
    for path in one_by_one.folder.rglob("*"):
        if path.is_file() and path.parent.name != "model":
            assert b"document.title" not in path.read_bytes(), path
    assert "worst errors among the test examples" in at_once.report_file.read_text(encoding="utf-8")
    shown, hidden = ((run.model_folder / "README.md").read_text(encoding="utf-8") for run in (at_once, one_by_one))
    assert shown.count("\n", shown.index("| text | right | predicted |"), shown.index("## Training")) > 3
    assert "No example of the data" not in shown
    assert "<b>rotten" not in shown
    assert "No example of the data is part of this repository." in hidden
    assert "document.title" not in hidden


def test_a_report_is_one_safe_page_and_can_be_rebuilt(at_once: Run, capsys: pytest.CaptureFixture[str]) -> None:
    page = at_once.report_file.read_text(encoding="utf-8")
    for part in ("result", "seeds", "curves", "rates", "confusion", "classes", "reliability", "lengths", "examples"):
        assert f'<section id="{part}"' in page, part
    assert html.escape(BAD_TEXT, quote=False).split(";")[1] in page
    assert "<script" not in page
    assert "<b>rotten" not in page
    assert "http:" not in page
    assert "https:" not in page
    at_once.report_file.unlink()
    assert command("report", at_once.folder) == 0
    assert at_once.report_file.read_text(encoding="utf-8") == page


def test_runs_are_compared_on_the_same_rows(
    at_once: Run, one_by_one: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("compare", at_once.folder, one_by_one.folder) == 0
    told = capsys.readouterr().out
    assert "at n=40" in told
    assert "paired bootstrap" in told
    seeds = [at_once.folder / "seeds" / "13", one_by_one.folder / "seeds" / "3", one_by_one.folder / "seeds" / "4"]
    assert command("compare", *seeds, "--metric", "f1_macro") == 0
    assert capsys.readouterr().out.count("at n=40") == 3
    assert command("compare", *seeds[:2]) == 0
    assert "McNemar" in capsys.readouterr().out
    page = tmp_path / "both.html"
    assert command("report", at_once.folder, one_by_one.folder, "--output", page) == 0
    assert "at_once and one_by_one are not distinguishable" in page.read_text(encoding="utf-8") or "is better than" in (
        page.read_text(encoding="utf-8")
    )


def test_runs_on_other_rows_are_refused_in_one_line(
    at_once: Run, checkpoints: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**files, "test": str(write_rows(tmp_path / "test.jsonl", rows(40, start=2)))}
    run = finetune(recipe(checkpoints, other, tmp_path / "other", "bitfit", evaluation={"every": 10**6}))
    capsys.readouterr()
    assert command("compare", at_once.folder, run.folder) == 2
    error = capsys.readouterr().err
    assert "other test rows" in error
    assert "38 of 40" in error
    assert error.count("\n") == 1
    # Side by side they may still be looked at.
    assert command("report", at_once.folder, run.folder, "--output", tmp_path / "page.html") == 0
    assert "not compared by a test" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert command("compare", at_once.folder) == 2
    assert command("compare", at_once.folder, tmp_path) == 2
    assert command("compare", at_once.folder, run.folder, "--split", "validation", "--metric", "acuracy") == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err
    assert command("report") == 2


def test_a_sweep_of_heads_goes_on_where_it_stopped_and_tests_once(
    checkpoints: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "checkpoint": checkpoints / "bert",
        **{f"data.{name}": path for name, path in files.items()},
        "strategy.type": "feature_extraction",
        "optim.num_train_epochs": 1,
        "output_dir": tmp_path / "sweep",
    }
    vary = ["--vary", "optim.learning_rate=1e-4..1e-1:log", "--vary", "seed=1,2"]
    assert command("sweep", "text_classification", *flags(given), *vary, "--trials", 3) == 0
    assert "3 heads are trained at once" in capsys.readouterr().out
    assert command("sweep", "text_classification", *flags(given), *vary, "--trials", 5) == 0
    out = capsys.readouterr().out
    assert "2 heads are trained at once" in out
    with (tmp_path / "sweep" / "trials.csv").open(encoding="utf-8") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 5
    assert {trial["state"] for trial in trials} == {"complete"}
    assert len({trial["optim.learning_rate"] for trial in trials}) == 5
    summary = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    best = Run(tmp_path / "sweep" / "best")
    assert summary["test"] == best.metrics["test"]["accuracy"]
    assert summary["validation"] == max(float(trial["validation"]) for trial in trials)
    assert -0.3 < summary["optimism"] < 0.5
    assert best.recipe.optim.learning_rate == summary["best_values"]["optim.learning_rate"]
    # What was tried saw no test data.
    for path in (tmp_path / "sweep" / "trials").rglob("*.safetensors"):
        assert b"test/" not in path.read_bytes()
    assert command("sweep", "text_classification", *flags(given), "--vary", "seed=1,2", "--trials", 5) == 2
    assert "begun with another recipe or other fields" in capsys.readouterr().err


def test_a_sweep_over_strategies_leaves_out_what_one_does_not_have(
    checkpoints: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hftransfer.sweep import sweep
    from hftransfer.sweep_space import parse

    base = recipe(checkpoints, files, tmp_path / "sweep", "lora")
    base = base.model_copy(update={"optim": base.optim.model_copy(update={"max_steps": 2})})
    space = [parse("strategy.type=bitfit,top_layers"), parse("strategy.k=2..9")]
    run = sweep(base, space, 4)
    with (tmp_path / "sweep" / "trials.csv").open(encoding="utf-8") as file:
        trials = list(csv.DictReader(file))
    assert {bool(trial["strategy.k"]) for trial in trials if trial["strategy.type"] == "bitfit"} <= {False}
    assert all(trial["strategy.k"] for trial in trials if trial["strategy.type"] == "top_layers")
    assert run.recipe.strategy.type in ("bitfit", "top_layers")
    assert not list((tmp_path / "sweep" / "trials").glob("*/model"))


TAGGED = [{"text": ["great", "film", "the", "dog"], "label": ["O", "O", "O", "B-<i>animal</i>"]}] * 8
OTHER_TASKS: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], str]] = {
    "token_classification": ("bert", TAGGED, {}, "most frequent tag of every word"),
    "question_answering": (
        "bert",
        [{"text": "who", "context": "the dog sat", "label": {"text": ["dog"], "answer_start": [4]}}] * 8,
        {"text_pair": "context"},
        "no answer, always",
    ),
    "multiple_choice": (
        "bert",
        [{"text": "the dog", "choices": ["sat", "is red"], "label": row % 2} for row in range(8)],
        {"text_pair": "choices"},
        "guessing",
    ),
    "regression": (
        "bert",
        [{"text": f"film {row}", "label": row / 7} for row in range(8)],
        {},
        "TF-IDF + ridge regression",
    ),
    "multi_label": (
        "bert",
        [{"text": "great film" if row % 2 else "bad", "label": ["x"] if row % 2 else ["y", "x"]} for row in range(8)],
        {},
        "TF-IDF + logistic regression",
    ),
    "seq2seq": ("t5", [{"text": "the cat", "label": "the dog"}] * 8, {}, "the input, copied"),
    "causal_lm": ("gpt2", [{"text": "the cat sat on a dog"}] * 8, {}, "token frequencies"),
    "masked_lm": ("bert", [{"text": "the cat sat on a dog and a bird"}] * 8, {}, ""),
}
CLASSES = {"seq2seq": "AutoModelForSeq2SeqLM", "causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM"}


@pytest.mark.parametrize("name", OTHER_TASKS)
def test_every_task_has_a_report(name: str, checkpoints: Path, language_models: Path, tmp_path: Path) -> None:
    family, examples, data, baseline = OTHER_TASKS[name]
    checkpoint = language_models / family / CLASSES[name] if name in CLASSES else checkpoints / family
    task: dict[str, Any] = {"type": name if name not in ("regression", "multi_label") else "text_classification"}
    if name == "seq2seq":
        task["max_new_tokens"] = 4
    made = Recipe(
        checkpoint=str(checkpoint),
        task=task,
        data={**data, "max_length": 32},
        optim={"max_steps": 1},
        output_dir=str(tmp_path / "run"),
        report_examples=True,
    )
    run = finetune(made, train=examples, validation=examples, test=examples)
    page, card = run.report_file.read_text(encoding="utf-8"), (run.model_folder / "README.md").read_text()
    assert "<i>animal" not in card
    assert (
        ("| text | right | predicted |" in card)
        == ("No example of the data" not in card)
        == ("worst errors among" in page)
    )
    metric = run.metrics["training"]["metric"]
    assert metric in run.metrics["intervals"]["test"]
    assert "95 % interval" in page
    assert baseline in page
    assert "<i>animal" not in page
    for part in ("result", "curves", "rates", "lengths", "cost", "recipe"):
        assert f'<section id="{part}"' in page, part


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page_in_a_browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = browser()
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_report_opens_offline_without_errors(
    page_in_a_browser: Any, at_once: Run, one_by_one: Run, tmp_path: Path
) -> None:
    both = tmp_path / "both.html"
    assert command("report", at_once.folder, one_by_one.folder, "--output", both) == 0
    for file, scheme in ((at_once.report_file, "light"), (at_once.report_file, "dark"), (both, "light")):
        page = page_in_a_browser.new_page(color_scheme=scheme, viewport={"width": 420, "height": 800})
        trouble: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message, trouble=trouble: trouble.append(message.text))
        page.on("pageerror", lambda error, trouble=trouble: trouble.append(str(error)))
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.goto(file.resolve().as_uri())
        assert trouble == []
        assert requests == [file.resolve().as_uri()]
        # A narrow screen scrolls tables and charts, not the page.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, colour[4:-1].split(","))) for colour in colours]
        assert (brightness[0] < brightness[1]) == (scheme == "dark")
        page.close()


def test_html_in_labels_and_texts_is_text_and_the_keyboard_reaches_the_tables(
    page_in_a_browser: Any, at_once: Run
) -> None:
    page = page_in_a_browser.new_page()
    page.goto(at_once.report_file.resolve().as_uri())
    assert page.title() == "at_once - report".replace("-", "\N{EN DASH}")
    assert page.locator("main script, main b").count() == 0
    assert BAD_LABEL in page.locator("#classes").inner_text()
    assert BAD_TEXT in page.locator("#examples").inner_text()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    summary = page.locator("#curves summary")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#curves details table").is_visible()
    for chart in page.locator("svg.chart").all():
        assert chart.locator("title").first.text_content()
        assert chart.locator("desc").first.text_content()
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("#rates details table").first.is_visible()
    page.close()


def test_seed_0_is_a_seed(checkpoints: Path, files: dict[str, str], tmp_path: Path) -> None:
    same = {**files, "validation": str(write_rows(tmp_path / "one.jsonl", rows(2)))}
    run = finetune(recipe(checkpoints, same, tmp_path / "run", "feature_extraction", seeds=[0, 1]))
    assert run.metrics["seeds"]["chosen"] in (0, 1)
    for seed in (0, 1):
        steps = [one["step"] for one in Run(run.folder / "seeds" / str(seed)).log if "validation_accuracy" in one]
        assert len(steps) == len(set(steps)), "trained once"
