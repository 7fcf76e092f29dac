"""Settings from a YAML file under those of the command line: default < YAML < flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from cyclopts import App, Argument, ArgumentCollection, Token
from cyclopts.utils import UNSET
from pydantic import ValidationError

from hftransfer.cli.errors import describe
from hftransfer.cli.recipes import recipe_names
from hftransfer.errors import RecipeError
from hftransfer.folded_settings import FOLDED, NOW_PART, folded_setting
from hftransfer.recipe import NO_SECRETS, UNIONS, Recipe
from hftransfer.redaction import secret_setting
from hftransfer.safety.text_formats import MAX_YAML_BYTES, YAML_ERRORS, RecipeLoader

FROM_FLAG, FROM_YAML = "flag", "YAML"


class RecipeConfig:
    """Builds the recipe from flags and the file named by `--config`, and remembers where every setting came from.

    Args:
        task: The task of the recipe that is run; None takes it from the command line's first argument.
    """

    origins: dict[str, str]

    def __init__(self, task: str | None = None) -> None:
        self.task = task

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Replace the flags' values by the whole recipe; cyclopts calls this after parsing the flags.

        Raises:
            RecipeError: If the file cannot be read, or file and flags together are no recipe.
        """
        if any("NAME" in argument.names and not argument.tokens for argument in arguments):
            # cyclopts says what is missing; a recipe without its name needs no further look.
            return
        named = next((argument.tokens for argument in arguments if "NAME" in argument.names), None)
        task = named[0].value if named else self.task
        flags = {}
        for argument in arguments:
            if argument.keys and argument.tokens:
                # `--strategy lora` is short for `--strategy.type lora`, as in a file.
                keys = (*argument.keys, "type") if ".".join(argument.keys) in UNIONS else argument.keys
                flags[keys] = _flag_value(argument)
                argument.tokens.clear()
        config = next(argument for argument in arguments if "--config" in argument.names).tokens
        path = Path(config[0].value) if config else None
        values = read_yaml(path) if path else {}
        recipe = build_recipe(values, flags, path, task)
        from_file = {} if path is None else dict.fromkeys(_leaves(values), f"{FROM_YAML} ({path.name})")
        type(self).origins = from_file | dict.fromkeys(map(".".join, flags), FROM_FLAG)
        root = next(argument for argument in arguments if argument.hint is Recipe)
        root.tokens.append(Token(implicit_value=recipe))


def build_recipe(
    values: dict[str, Any], flags: dict[tuple[str, ...], Any], path: Path | None, task: str | None = None
) -> Recipe:
    """The recipe of a file's settings with flags over them.

    Args:
        values: The file's settings; what flags replace is changed in place.
        flags: The flags' values by the parts of their dotted names.
        path: The file, for messages.
        task: The task that is run, where its name is known.

    Raises:
        RecipeError: If a setting is unknown, missing or out of range, or the recipe is one of another task.
    """
    for union in UNIONS:
        section, chosen = values.get(union), flags.get((union, "type"))
        if chosen is not None and not (isinstance(section, dict) and section.get("type") == chosen):
            # The file's other settings belong to the type that the flag replaced.
            values.pop(union, None)
    for keys, value in flags.items():
        section = values.setdefault(keys[0], {}) if len(keys) > 1 else values
        if not isinstance(section, dict):
            raise RecipeError("should be a mapping of settings", where=f"{path}: {keys[0]}", fix="mend the YAML")
        section[keys[-1]] = value
    secret = secret_setting(values)
    if secret is not None:
        raise RecipeError("holds a token or a password", where=secret, fix=NO_SECRETS)
    folded = folded_setting(values)
    if folded is not None:
        raise RecipeError(NOW_PART, where=folded if path is None else f"{path}: {folded}", fix=FOLDED[folded])
    try:
        return Recipe.model_validate(_with_task(values, task))
    except ValidationError as error:
        where, what = describe(error)
        by_flag = any(where == name or where.startswith(f"{name}.") for name in map(".".join, flags))
        by_file = path is not None and not by_flag and error.errors()[0]["type"] != "missing"
        raise RecipeError(what, where=f"{path}: {where}" if by_file else where) from None


def _with_task(values: dict[str, Any], task: str | None) -> dict[str, Any]:
    """The settings with the task that is run; a recipe of another task is run under its own name."""
    section = values.get("task", {})
    if task is None or not isinstance(section, dict):
        return values
    said = section.get("type", task)
    if said != task and said in recipe_names():
        raise RecipeError(f"is {said!r}, but {task} is run", where="task.type", fix=f"use hftransfer run {said}")
    return {**values, "task": {**section, "type": said}}


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        RecipeError: If the file cannot be read or is not a mapping of settings.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise RecipeError(f"larger than {MAX_YAML_BYTES} bytes", where=str(path), fix="is this a recipe?")
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except RecipeError:
        raise
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=str(path), fix="check --config") from error
    except YAML_ERRORS as error:
        problem = getattr(error, "problem", None) or "no YAML text"
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(str(problem), where=f"{path}{line}", fix="mend the YAML") from error
    if not isinstance(values, dict):
        raise RecipeError("not a mapping of settings", where=str(path), fix="write lines such as `checkpoint: NAME`")
    # A setting left empty is one that was not made.
    values = _without_none(values)
    for union in UNIONS:
        if isinstance(values.get(union), str):
            values[union] = {"type": values[union]}
    return values


def _takes_list(hint: Any) -> bool:
    """Whether a setting of this type may be a list; a text may begin with a bracket."""
    return hint is list or get_origin(hint) in (list, tuple) or any(map(_takes_list, get_args(hint)))


def _flag_value(argument: Argument) -> Any:
    """What the tokens of one flag say: text, a boolean or a list (`--trackers a --trackers b` or `--trackers [a, b]`).

    Raises:
        RecipeError: If a list is not written as one.
    """
    values = [token.value if token.implicit_value is UNSET else token.implicit_value for token in argument.tokens]
    first = values[0]
    if len(values) == 1 and isinstance(first, str) and first.startswith("[") and _takes_list(argument.hint):
        try:
            return yaml.load(first, Loader=RecipeLoader)
        except YAML_ERRORS:
            raise RecipeError(f"not a list: {first[:80]}", where=".".join(argument.keys), fix="write [a, b]") from None
    return values if len(values) > 1 or get_origin(argument.hint) is list else first


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names: list[str] = []
    for name, value in values.items():
        names += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return names
