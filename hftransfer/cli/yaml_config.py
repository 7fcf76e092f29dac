"""Settings from a YAML file under those of the command line: default < YAML < flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from hftransfer.errors import RecipeError

FROM_FLAG, FROM_YAML = "flag", "YAML"
# A recipe is a page; a file beyond this is something else.
MAX_YAML_BYTES = 1_000_000


class RecipeConfig:
    """Reads the file named by `--config` and remembers where every setting came from."""

    origins: dict[str, str]

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Give arguments without a flag their values from the file; cyclopts calls this after parsing the flags."""
        given = {name.removeprefix("--"): argument for argument in arguments for name in argument.names}
        config = given["config"].tokens
        flags = {name for name, argument in given.items() if argument.tokens} - {"config"}
        type(self).origins = dict.fromkeys(flags, FROM_FLAG)
        if not config:
            return
        path = Path(config[0].value)
        values = read_yaml(path)
        strategy_type = given["strategy.type"].tokens
        if (
            strategy_type
            and isinstance(values.get("strategy"), dict)
            and values["strategy"].get("type") != strategy_type[0].value
        ):
            # The file's other strategy settings belong to the type that the flag replaced.
            del values["strategy"]
        type(self).origins |= dict.fromkeys(set(_leaves(values)) - flags, f"{FROM_YAML} ({path.name})")
        Dict(values, source=str(path), use_commands_as_keys=False)(app, commands, arguments)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        RecipeError: If the file cannot be read or is not a mapping of settings.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise RecipeError(f"larger than {MAX_YAML_BYTES} bytes", where=str(path), fix="is this a recipe?")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=str(path), fix="check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or "no YAML text"
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(str(problem), where=f"{path}{line}", fix="mend the YAML") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError("not a mapping of settings", where=str(path), fix="write lines such as `checkpoint: NAME`")
    # A setting left empty is one that was not made.
    values = _without_none(values)
    if isinstance(values.get("strategy"), str):
        values["strategy"] = {"type": values["strategy"]}
    return values


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
