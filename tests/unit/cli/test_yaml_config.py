"""Flags over YAML over defaults, and one line for everything that is wrong with either."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftransfer.cli.main import main
from hftransfer.cli.yaml_config import read_yaml
from hftransfer.errors import RecipeError
from hftransfer.folded_settings import FOLDED
from hftransfer.recipe import Recipe
from hftransfer.run import create_run
from hftransfer.strategy_settings import Lora, PlainStrategy, TopLayers

# Every setting away from its default, one recipe per strategy that has settings of its own kind.
RECIPES: list[dict[str, Any]] = [
    {"trackers": []},
    {"strategy": {"type": "lora", "targets": ["query", "value"], "alpha": 32.0, "variant": "dora"}},
    {"trackers": ["a", "b"], "seed": 3, "overwrite": True, "evaluation": {"keep": "last", "every": 5}},
    {"strategy": {"type": "lora", "targets": "attention", "top_blocks": None}},
    {"strategy": {"type": "lp_ft", "probe_share": 0.5}, "optim": {"learning_rate": 1e-5, "max_steps": None}},
    {"data": {"train": "a b.csv", "label": "no", "text": "1.0", "max_length": 12}, "task": {"focal_gamma": 2.0}},
]
Outcome = tuple[Recipe, Mapping[str, str]]
Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line up to the recipe's main; returns what that is given."""
    module, seen = importlib.import_module("hftransfer.recipes.text_classification"), []
    # These recipes are about settings: they name no data.
    monkeypatch.setattr("hftransfer.cli.inputs.check_inputs", lambda recipe: None)
    monkeypatch.setattr(module, "main", lambda recipe, origins: seen.append((recipe, dict(origins))))

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main(["run", "text_classification", *map(str, arguments)])
        assert not stop.value.code
        return seen[-1]

    return call


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "film.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a failing command."""
    with pytest.raises(SystemExit) as stop:
        main(["run", "text_classification", *map(str, arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


def test_flag_over_yaml_over_default(run: Run, config: Callable[[str], Path]) -> None:
    path = config("checkpoint: m\nseed: 3\ndata: {text: review, label: stars}\noptim:\n  learning_rate: 1e-4\n")
    recipe, origins = run("--config", path, "--seed", 4, "--data.label", "verdict")
    assert (recipe.checkpoint, recipe.seed, recipe.keep_checkpoints) == ("m", 4, 1)
    assert (recipe.data.text, recipe.data.label, recipe.optim.learning_rate) == ("review", "verdict", 1e-4)
    from_file = dict.fromkeys(["checkpoint", "data.text", "optim.learning_rate"], "YAML (film.yaml)")
    assert origins == {**from_file, "seed": "flag", "data.label": "flag"}


def test_flags_alone(run: Run) -> None:
    flags = ["--checkpoint", "m", "--overwrite", "--evaluation.keep=last", "--optim.learning_rate", "1e-3"]
    recipe, origins = run(*flags)
    assert (recipe.overwrite, recipe.evaluation.keep, recipe.optim.learning_rate) == (True, "last", 1e-3)
    names = ["checkpoint", "overwrite", "evaluation.keep", "optim.learning_rate"]
    assert origins == dict.fromkeys(names, "flag")


def test_origins_are_those_of_the_last_call(run: Run, config: Callable[[str], Path]) -> None:
    run("--config", config("checkpoint: m\nseed: 3\n"), "--data.text", "t")
    assert run("--checkpoint", "m")[1] == {"checkpoint": "flag"}


@pytest.mark.parametrize("flag", ["--strategy.type", "--strategy"])
@pytest.mark.parametrize("written", ["{type: lora, r: 64, variant: dora}", "lora", "", "{type: lora}"])
def test_another_strategy_by_flag_drops_the_old_ones_settings(
    run: Run, config: Callable[[str], Path], written: str, flag: str
) -> None:
    path = config(f"checkpoint: m\nstrategy: {written}\n")
    recipe, origins = run("--config", path, flag, "top_layers", "--strategy.k", 3)
    assert recipe.strategy == TopLayers(k=3)
    assert origins == {"checkpoint": "YAML (film.yaml)", "strategy.type": "flag", "strategy.k": "flag"}


def test_the_same_strategy_by_flag_keeps_the_settings(run: Run, config: Callable[[str], Path]) -> None:
    path = config("checkpoint: m\nstrategy: {type: lora, r: 64, variant: dora}\n")
    recipe, origins = run("--config", path, "--strategy.type", "lora", "--strategy.r", 2)
    assert recipe.strategy == Lora(r=2, variant="dora")
    assert origins["strategy.variant"] == "YAML (film.yaml)"
    assert run("--config", path, "--strategy.r", 2)[0].strategy == Lora(r=2, variant="dora")
    assert run("--config", config("checkpoint: m\nstrategy: lora\n"), "--strategy.r", 2)[0].strategy == Lora(r=2)


@pytest.mark.parametrize("given", [["--data.streaming"], ["--data.streaming", "on"], ["--data.streaming=true"]])
def test_streaming_as_a_switch(run: Run, given: list[str]) -> None:
    assert run("--checkpoint", "m", *given, "--seed", 5)[0].data.streaming is True


def test_streaming_as_a_number(run: Run, config: Callable[[str], Path]) -> None:
    assert run("--checkpoint", "m", "--data.streaming", 1)[0].data.chunk_examples == 1
    path = config("checkpoint: m\ndata: {streaming: 300}\n")
    assert run("--config", path)[0].data.chunk_examples == 300
    assert run("--config", path, "--data.streaming", "false")[0].data.streaming is False


@pytest.mark.parametrize("name", FOLDED)
def test_an_old_name_gets_one_line_with_the_new_form(
    name: str, config: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    section, _, leaf = name.partition(".")
    path = config(f"checkpoint: m\n{section}: {{{leaf}: 1}}\n")
    said = f"{name}: is part of another setting now; {FOLDED[name]}"
    assert failure(capsys, "--config", path) == f"error: {path}: {said}"
    for flag in ([f"--{name}"], [f"--{name}=1"], [f"--{name}", "1"]):
        assert failure(capsys, "--checkpoint", "m", *flag) == f"error: {said}"


def test_an_old_name_without_a_value_is_no_setting(run: Run, config: Callable[[str], Path]) -> None:
    assert run("--config", config("checkpoint: m\ndata: {revision: null}\n"))[0] == Recipe(checkpoint="m")


@pytest.mark.parametrize(
    ("flags", "trackers"),
    [
        (["--trackers", "a"], ["a"]),
        (["--trackers", "a", "--trackers", "b"], ["a", "b"]),
        (["--trackers", "[a, b]"], ["a", "b"]),
        (["--trackers", "[]"], []),
    ],
)
def test_lists_as_flags(run: Run, config: Callable[[str], Path], flags: list[str], trackers: list[str]) -> None:
    assert run("--config", config("checkpoint: m\ntrackers: [c, d]\n"), *flags)[0].trackers == trackers


def test_targets_are_a_word_or_a_list(run: Run) -> None:
    start = ["--checkpoint", "m", "--strategy", "lora", "--strategy.targets"]
    assert run(*start, "attention")[0].strategy.targets == "attention"  # type: ignore[union-attr]
    for flags in (["[q, v]"], ["q", "--strategy.targets", "v"]):
        assert run(*start, *flags)[0].strategy.targets == ["q", "v"]  # type: ignore[union-attr]


@pytest.mark.parametrize("values", RECIPES)
def test_the_recipe_of_a_run_is_a_config(run: Run, tmp_path: Path, values: dict[str, Any]) -> None:
    recipe = Recipe(**{"checkpoint": "m", "output_dir": str(tmp_path / "run"), **values})
    written = create_run(recipe).folder / "recipe.yaml"
    assert run("--config", written)[0] == recipe


def test_a_setting_left_empty_is_one_that_was_not_made(run: Run, config: Callable[[str], Path]) -> None:
    text = "checkpoint: m\nstrategy:\nseed:\noptim:\n  learning_rate:\ndata: {train: null}\n"
    recipe, origins = run("--config", config(text))
    assert recipe == Recipe(checkpoint="m")
    assert recipe.strategy == PlainStrategy()
    assert origins == {"checkpoint": "YAML (film.yaml)"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sed: 3", "sed: unknown setting; did you mean seed?"),
        ("optim: {learning_rat: 1}", "optim.learning_rat: unknown setting; did you mean optim.learning_rate?"),
        ("strategy: {type: lora, drop_out: 0.1}", "strategy.drop_out: unknown setting; did you mean strategy.dropout?"),
        ("strategy: {type: lora, k: 3}", "strategy.k: unknown setting"),
        ("run: 3", "run: unknown setting"),
        ("config: other.yaml", "config: unknown setting"),
        ("strategy: lorra", "no strategy is called 'lorra'; did you mean lora?"),
        ("strategy: {type: xyz}", "no strategy is called 'xyz'; there are feature_extraction,"),
        ("strategy: [lora]", "strategy: should be a mapping of settings, not ['lora']"),
        ("optim: 3", "optim: should be a mapping of settings, not 3"),
        ("optim: {learning_rate: abc}", "optim.learning_rate: Input should be a valid number"),
        ("optim: {learning_rate: 5}", "optim.learning_rate: Input should be less than or equal to 1, not 5"),
        ("strategy: {type: lora, r: 0}", "strategy.r: Input should be greater than 0, not 0"),
        ("strategy: {type: lora, targets: 3}", "strategy.targets: Input should be 'attention', 'query_value'"),
        ("task: {problem: regresion}", "task.problem: Input should be 'auto'"),
        ("trackers: tensorboard", "trackers: Input should be a valid list, not 'tensorboard'"),
        ("overwrite: [1]", "overwrite: Input should be a valid boolean, not [1]"),
        ("data: {text: 7}", "data.text: Input should be a valid string, not 7"),
        (f"seed: {'x' * 500}", "x..."),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(
    config: Callable[[str], Path], capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = config(f"checkpoint: m\n{line}\n")
    error = failure(capsys, "--config", path)
    assert f"{path}: {line.partition(':')[0]}" in error
    assert message in error
    assert len(error) < len(str(path)) + 250


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.learning_rat", "1"], "Did you mean --optim.learning_rate?"),
        (["--optim.learning_rate", "abc"], "error: optim.learning_rate: Input should be a valid number"),
        (["--optim.learning_rate", "7"], "error: optim.learning_rate: Input should be less than or equal to 1"),
        (["--strategy.type", "lorra"], "error: strategy.type: no strategy is called 'lorra'; did you mean lora?"),
        (["--strategy.k", "2"], "error: strategy.k: unknown setting"),
        (["--trackers", "[a"], "error: trackers: not a list: [a; write [a, b]"),
        (["--seed"], "--seed requires an argument"),
    ],
)
def test_a_wrong_flag_is_named(
    config: Callable[[str], Path], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in failure(capsys, "--config", config("checkpoint: m\n"), *flags)


def test_what_is_missing_is_named(config: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = "error: checkpoint: required; give it with --checkpoint or in the YAML file"
    assert failure(capsys) == expected
    assert failure(capsys, "--config", config("seed: 3\n")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"checkpoint: m\ndata: [a\n", ", line 3: expected ',' or ']'"),
        (b"a: b: c\n", ", line 1: "),
        (b"- a\n- b\n", "not a mapping of settings"),
        (b"just text", "not a mapping of settings"),
        (b"", "not a mapping of settings"),
        (b"\xff\xfe\x00\x01", "no YAML text"),
        (b"\x7fELF\x02\x00", "no YAML text"),
        (b"seed: 1\nseed: 2\n", ", line 2: seed is given twice"),
        (b"data: {1: 2}\n", ", line 1: a setting's name is not a text"),
        (b"data: &a {b: *a}\n", ", line 1: aliases are not supported"),
        (b"seed: !!python/object/apply:os.getcwd []\n", ", line 1: could not determine a constructor"),
        (b"seed: !!timestamp x\n", "mend the YAML"),
        (b"seed: !!bool x\n", "mend the YAML"),
        (b"seed: 2026-99-99\n", "mend the YAML"),
        (b"[" * 5000, "mend the YAML"),
        (b"#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_a_file_that_is_no_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "film.yaml"
    path.write_bytes(content)
    error = failure(capsys, "--config", path)
    assert error.startswith(f"error: {path}")
    assert message in error


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in failure(capsys, "--config", tmp_path / "absent.yaml")
    assert "Is a directory" in failure(capsys, "--config", tmp_path)


def test_reading_keeps_types(config: Callable[[str], Path]) -> None:
    assert read_yaml(config("a: 1\nb: '1'\nc: [x, 2]\nd: {e: true}\n")) == {
        "a": 1,
        "b": "1",
        "c": ["x", 2],
        "d": {"e": True},
    }
    with pytest.raises(RecipeError):
        read_yaml(config("- a"))


names = st.sampled_from(["checkpoint", "data", "task", "strategy", "optim", "seed", "trackers", "type", "r", "text"])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["lora", "auto"])
)
trees = st.recursive(
    scalars,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(names | st.text(max_size=6), part, max_size=4),
    max_leaves=12,
)
texts = (
    trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode())
    | st.binary(max_size=60)
    | st.text().map(str.encode)
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=texts)
def test_no_config_gets_past_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    # If all settings happen to be right, the checkpoint or the data are missing.
    failure(capsys, "--config", path, "--checkpoint", "./absent", "--data.train", "absent.csv")
    assert [found.name for found in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("text", ["[INST] {text} [/INST] ", "[text]"])
def test_a_text_may_begin_with_a_bracket(run: Run, text: str) -> None:
    recipe, _ = run("--checkpoint", "m", "--data.text", text)
    assert recipe.data.text == text
    assert run("--checkpoint", "m", "--strategy", "lora", "--strategy.targets", "[query, value]")[0].strategy.targets
    assert run("--checkpoint", "m", "--trackers", "[a, b]")[0].trackers == ["a", "b"]
    assert run("--checkpoint", "m", "--seeds", "[1, 2]")[0].training_seeds == (1, 2)
