"""Run: the folder that one recipe leaves behind."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from hftransfer.errors import RecipeError
from hftransfer.recipe import Recipe

RECIPE_FILE, METRICS_FILE, MODEL_FOLDER, LOG_FILE = "recipe.yaml", "metrics.json", "model", "log.jsonl"
REPORT_FILE = "report.html"


class Run:
    """A finished run.

    Attributes:
        folder: The run's folder: `recipe.yaml`, `log.jsonl`, `metrics.json`, `model/`, `checkpoints/`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def model_folder(self) -> Path:
        """The plain Hugging Face folder."""
        return self.folder / MODEL_FOLDER

    @property
    def report_file(self) -> Path:
        """The report, one page that opens offline."""
        return self.folder / REPORT_FILE

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe(**yaml.safe_load((self.folder / RECIPE_FILE).read_text(encoding="utf-8")))

    @property
    def metrics(self) -> dict[str, Any]:
        """Scores per split, times and counts."""
        found: dict[str, Any] = json.loads((self.folder / METRICS_FILE).read_text(encoding="utf-8"))
        return found

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of the training log."""
        lines = (self.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def check_output_folder(recipe: Recipe) -> None:
    """Refuse an output folder that holds something already, before anything heavy is done.

    Raises:
        RecipeError: If it cannot be made, or exists and neither --overwrite nor --resume auto says what to do with it.
    """
    folder = Path(recipe.output_dir or "")
    try:
        if "\0" in str(folder):
            raise ValueError("a null character in its name")
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        writable, used = os.access(there, os.W_OK), folder.is_dir() and any(folder.iterdir())
    except (OSError, ValueError) as error:
        raise RecipeError(f"no usable folder ({error})", where="output_dir", fix="choose another") from error
    if not there.is_dir():
        raise RecipeError("is a file, not a folder", where=str(there), fix="choose another --output_dir")
    if not writable:
        raise RecipeError("not writable", where=str(there), fix="choose another --output_dir")
    if not used or recipe.resume == "auto":
        return
    if not recipe.overwrite:
        raise RecipeError(
            "the output folder is not empty",
            where=str(folder),
            fix="choose another --output_dir, or --overwrite, or --resume auto",
        )
    if not (folder / RECIPE_FILE).is_file():
        raise RecipeError(
            "is not the folder of a run, so it is not overwritten", where=str(folder), fix="choose another --output_dir"
        )
    inputs = {
        "checkpoint": recipe.checkpoint,
        **{f"data.{name}": getattr(recipe.data, name) for name in ("train", "validation", "test", "name")},
    }
    for name, path in inputs.items():
        if path is not None and Path(path).resolve().is_relative_to(folder.resolve()):
            raise RecipeError(f"{path} is in output_dir, which is overwritten", where=name, fix="choose another folder")


def create_run(recipe: Recipe, writes: bool = True) -> Run:
    """Make the run's folder and write the resolved recipe into it; only one process writes."""
    folder = Path(recipe.output_dir or "")
    if not writes:
        return Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.overwrite and recipe.resume != "auto":
        # Its contents alone: the folder may be a link or a mount.
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    text = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    write_whole(folder / RECIPE_FILE, text)
    return Run(folder)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is whole or as it was before."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def plain_numbers(value: Any) -> Any:
    """JSON has no NaN: an undefined score becomes null."""
    if isinstance(value, dict):
        return {name: plain_numbers(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
