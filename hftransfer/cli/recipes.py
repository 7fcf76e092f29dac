"""`hftransfer recipes`: what can be trained, and where its configs are."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from hftransfer.errors import RecipeError

# The recipes are data to the command line: found by name, never imported by the library.
PACKAGE = "hftransfer.recipes"


def recipes_folder() -> Path:
    """Where the recipes are installed."""
    return Path(str(importlib.import_module(PACKAGE).__file__)).parent


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return sorted(module.name for module in pkgutil.iter_modules([str(recipes_folder())]) if not module.ispkg)


def check_name(name: str) -> None:
    """Raise RecipeError if there is no recipe of this name."""
    names = recipe_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise RecipeError(f"no recipe is called {name!r}", fix=fix)


def recipe_module(name: str) -> ModuleType:
    """The module of a recipe.

    Raises:
        RecipeError: If there is none of this name.
    """
    check_name(name)
    return importlib.import_module(f"{PACKAGE}.{name}")


def config_files(name: str) -> list[Path]:
    """The configs that come with a recipe."""
    return sorted((recipes_folder() / "configs" / name).glob("*.yaml"))


def schema_file() -> Path:
    """The JSON Schema of a recipe, by which editors complete the configs."""
    return recipes_folder() / "configs" / "recipe.schema.json"


def recipes() -> None:
    """List the recipes and the configs that come with them."""
    for name in recipe_names():
        source = (recipes_folder() / f"{name}.py").read_text(encoding="utf-8")
        print(f"{name:24} {(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
        for config in config_files(name):
            print(f"    --config {config}")
