"""Budgets that keep the code small, and the promise that the package imports lightly."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import hftransfer
from hftransfer.recipe import Recipe

ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("hftransfer", "recipes", "scripts", "tests", "benchmarks")
TEXT_SUFFIXES = {"", ".py", ".sh", ".md", ".txt", ".yaml", ".toml", ".cfg", ".json"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PUBLIC_NAMES = 30
MAX_RECIPE_FIELDS = 80
# A path under one of these top-level folders is true on one machine alone.
MACHINE_PATH = re.compile(r"(?<![\w.}/:-])/(?:home|root|Users|tmp|work|opt|mnt|srv)/\w")


def files_below(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def models_in(annotation: object) -> set[type[BaseModel]]:
    """The pydantic models that an annotation names, inside unions and Annotated too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*(models_in(argument) for argument in get_args(annotation)))


def leaf_fields(model: type[BaseModel]) -> set[tuple[str, str]]:
    """(model, field) for every settable field of a model and the models below it.

    Each model counts once, and a field that several models share counts once, under the base that defines it. So does
    the `type` that chooses among the members of a union: it is one setting, `task.type` or `strategy.type`.
    """
    leaves: set[tuple[str, str]] = set()
    for name, field in model.model_fields.items():
        below = models_in(field.annotation)
        home = next(base for base in model.__mro__ if name in inspect.get_annotations(base))
        leaves |= set().union(*map(leaf_fields, below)) if below else {(home.__name__, name)}
        if len(below) > 1:
            chosen = {(member, leaf) for member, leaf in leaves if leaf == "type"}
            leaves = leaves - chosen | {(model.__name__, f"{name}.type")}
    return leaves


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_are_short() -> None:
    code = [path for path in files_below(*CODE_FOLDERS) if path.suffix in {"", ".py", ".sh"}]
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert len(lengths) > 20
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{relative(path)}: {name}": lines
        for path in files_below(*CODE_FOLDERS)
        if path.suffix == ".py"
        for name, lines in functions(path.read_text(encoding="utf-8"))
        if lines > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_top_level_names_exist_and_are_few() -> None:
    assert len(hftransfer.__all__) <= MAX_PUBLIC_NAMES
    assert len(set(hftransfer.__all__)) == len(hftransfer.__all__)
    assert [name for name in hftransfer.__all__ if not hasattr(hftransfer, name)] == []
    assert set(hftransfer.__all__) <= set(dir(hftransfer))


def test_recipe_fields_are_few() -> None:
    fields = leaf_fields(Recipe)
    assert {("Recipe", "seed"), ("Recipe", "task.type"), ("Lora", "r"), ("OptimSection", "learning_rate")} <= fields
    assert not [name for _, name in fields if name == "type"]
    assert len(fields) <= MAX_RECIPE_FIELDS


@pytest.mark.parametrize(
    "action",
    [
        "import hftransfer; dir(hftransfer)",
        "from hftransfer import Recipe",
        "from hftransfer.cli.main import main; call(main, '--help')",
        "from hftransfer.cli.main import main; call(main, 'run', '--help')",
    ],
)
def test_loads_neither_torch_nor_transformers(action: str) -> None:
    code = f"""
import sys

def call(main, *arguments):
    sys.argv = ["hftransfer", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code

{action}
print("loaded:", sorted({{"torch", "transformers", "datasets", "peft", "accelerate"}} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "loaded: []"


def test_a_trainings_start_does_not_wait_for_what_its_scores_need() -> None:
    code = """
import sys
from hftransfer import finetune
print("loaded:", sorted({"scipy.stats", "sklearn", "evaluate", "peft"} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "loaded: []"


def test_no_path_of_one_machine() -> None:
    files = [*files_below(*CODE_FOLDERS, "docs", ".ci"), *(path for path in ROOT.glob("*") if path.is_file())]
    texts = [path for path in files if path.suffix in TEXT_SUFFIXES and path.name != Path(__file__).name]
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
