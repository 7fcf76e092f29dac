"""The run folder: what it holds, and when a folder may be used for one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftransfer import finetune
from hftransfer import run as run_module
from hftransfer.errors import HubError, RecipeError
from hftransfer.recipe import Recipe
from hftransfer.run import Run, check_output_folder, check_push, create_run
from hftransfer.run_files import plain_numbers, write_whole

RECIPES: list[dict[str, Any]] = [
    {},
    {"trackers": []},
    {"trackers": ["tensorboard", "wandb"]},
    {"strategy": {"type": "lora", "targets": ["query", "value"], "alpha": None, "top_blocks": 2}},
    {"data": {"train": "Möbel: teil 1.csv", "text": "007", "label": "yes", "max_length": None}},
    {"optim": {"learning_rate": 1e-5, "num_train_epochs": None}, "strategy": {"type": "lp_ft"}},
]


def recipe_for(folder: Path, **values: Any) -> Recipe:
    return Recipe(**{"checkpoint": "m", "output_dir": str(folder), **values})


@pytest.mark.parametrize("values", RECIPES)
def test_the_recipe_survives_its_file(tmp_path: Path, values: dict[str, Any]) -> None:
    recipe = recipe_for(tmp_path / "deep" / "run", **values)
    assert create_run(recipe).recipe == recipe


def test_a_run_is_a_path(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    assert Path(run) == run.folder == tmp_path
    assert str(tmp_path) in repr(run)
    assert run.model_folder == tmp_path / "model"


def test_metrics_and_log_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"test": {"accuracy": 0.5}}')
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert Run(tmp_path).metrics == {"test": {"accuracy": 0.5}}
    assert [record["step"] for record in Run(tmp_path).log] == [1, 2]


def test_only_one_process_writes(tmp_path: Path) -> None:
    create_run(recipe_for(tmp_path / "run"), writes=False)
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_removes_what_the_killed_one_had_begun_to_write(tmp_path: Path) -> None:
    (tmp_path / "verdicts").mkdir()
    for place in (tmp_path, tmp_path / "verdicts"):
        (place / ".writing-0123.json").write_text('{"a": ')
        (place / "kept.json").write_text("{}")
    create_run(recipe_for(tmp_path, resume="auto"))
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"kept.json", "recipe.yaml"}


def test_new_and_empty_folders_are_fine(tmp_path: Path) -> None:
    check_output_folder(recipe_for(tmp_path / "new" / "deep"))
    check_output_folder(recipe_for(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_needs_overwrite_or_resume(tmp_path: Path) -> None:
    create_run(recipe_for(tmp_path))
    with pytest.raises(RecipeError, match=r"not empty.*--overwrite.*--resume auto"):
        check_output_folder(recipe_for(tmp_path))
    check_output_folder(recipe_for(tmp_path, overwrite=True))
    check_output_folder(recipe_for(tmp_path, resume="auto"))


def test_overwriting_replaces_all_of_a_run_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "real").mkdir()
    folder = tmp_path / "link"
    folder.symlink_to(tmp_path / "real")
    create_run(recipe_for(folder, seed=1))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state").write_text("old")
    (folder / "outside").symlink_to(tmp_path / "kept.txt")
    run = create_run(recipe_for(folder, seed=2, overwrite=True))
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
    assert run.recipe.seed == 2
    assert folder.is_symlink()
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_resuming_keeps_the_folder_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("checkpoint: m\n")
    (tmp_path / "state").write_text("kept")
    create_run(recipe_for(tmp_path, overwrite=True, resume="auto"))
    assert (tmp_path / "state").read_text() == "kept"


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match="not the folder of a run"):
        check_output_folder(recipe_for(tmp_path, overwrite=True))


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/deep"])
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match=r"file: is a file, not a folder; choose another --output_dir"):
        check_output_folder(recipe_for(tmp_path / name))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_impossible_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"^output_dir: "):
        check_output_folder(recipe_for(tmp_path / name))


@pytest.mark.parametrize("values", [{"checkpoint": "model"}, {"data": {"train": "train.csv"}}, {"checkpoint": ""}])
def test_inputs_inside_the_overwritten_folder_are_not_deleted(tmp_path: Path, values: dict[str, Any]) -> None:
    create_run(recipe_for(tmp_path))
    inside = {
        name: {key: str(tmp_path / part) for key, part in value.items()}
        if isinstance(value, dict)
        else str(tmp_path / value)
        for name, value in values.items()
    }
    with pytest.raises(RecipeError, match="is in output_dir, which is overwritten"):
        check_output_folder(recipe_for(tmp_path, overwrite=True, **inside))


def test_a_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise OSError("cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="cut"):
        write_whole(path, "new")
    assert path.read_text() == "old"


numbers = st.floats() | st.integers() | st.none() | st.text()


@given(st.recursive(numbers, lambda part: st.dictionaries(st.text(), part)))
def test_plain_numbers_are_strict_json(value: Any) -> None:
    text = json.dumps(plain_numbers(value), allow_nan=False)
    assert json.loads(text) == plain_numbers(value)
    if isinstance(value, float) and math.isfinite(value):
        assert plain_numbers(value) == value


def test_no_run_is_continued_in_the_users_own_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match="not the folder of a run, so none is continued"):
        check_output_folder(recipe_for(tmp_path, resume="auto"))
    (tmp_path / "thesis.txt").unlink()
    # Of a run that was killed as it began.
    (tmp_path / ".writing-0123.yaml").write_text("x")
    check_output_folder(recipe_for(tmp_path, resume="auto"))


def test_a_checkpoint_that_the_run_would_replace_is_refused(tmp_path: Path) -> None:
    create_run(recipe_for(tmp_path))
    (tmp_path / "model").mkdir()
    with pytest.raises(RecipeError, match="is what the run would replace"):
        check_output_folder(recipe_for(tmp_path, resume="auto", checkpoint=str(tmp_path / "model")))


def test_which_run_goes_on_must_be_said() -> None:
    with pytest.raises(RecipeError, match=r"resume: no run is named.*--output_dir"):
        finetune(Recipe(checkpoint="m", resume="auto"))


def test_an_adapter_of_a_local_checkpoint_is_refused_before_the_training(tmp_path: Path) -> None:
    adapter: dict[str, Any] = {"checkpoint": str(tmp_path), "push_to_hub": True, "strategy": {"type": "lora"}}
    with pytest.raises(HubError, match="the adapter would belong to"):
        check_push(recipe_for(tmp_path / "run", **adapter))


def test_paths_of_this_machine_are_not_published() -> None:
    values = {"data": {"train": "/data/a.csv", "test": "../private/b.csv", "text": "text"}, "checkpoint": "ORG/name"}
    found = run_module._published({**values, "x": "~/c.csv"})
    assert found == {
        "data": {"train": "a.csv", "test": "b.csv", "text": "text"},
        "checkpoint": "ORG/name",
        "x": "c.csv",
    }
