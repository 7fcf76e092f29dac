"""What varies in a sweep: fields of a recipe with their values, and the recipe of a trial."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import ValidationError

from hftransfer.errors import RecipeError
from hftransfer.recipe import UNIONS, Recipe
from hftransfer.safety.text_formats import YAML_ERRORS, RecipeLoader
from hftransfer.strategy_settings import StrategySettings

if TYPE_CHECKING:
    import optuna

# Trials share their data: of its section only what is done to it afterwards may vary.
VARIED_DATA = {"data.max_length", "data.max_train_examples"}
FIXED = {
    *("output_dir", "overwrite", "resume", "seeds", "checkpoint_every", "keep_checkpoints", "trackers", "data.test"),
    *("push_to_hub", "hub_model_id", "hub_private_repo"),
}


@dataclass(frozen=True)
class Varied:
    """A field and the values that it may take: a list of choices, or a range.

    Attributes:
        name: Dotted name of the recipe's field.
        choices: The values, where they are listed.
        low: The lowest value of a range.
        high: The highest.
        log: Whether the range is drawn from on a logarithmic scale.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def suggest(self, trial: optuna.Trial) -> Any:
        """A value for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def parse(text: str) -> Varied:
    """`FIELD=a,b,c`, `FIELD=low..high` or `FIELD=low..high:log`.

    Raises:
        RecipeError: If it is none of these, or the field is none that may vary.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    where = f"--vary {text}"
    if not equals or not name or not values:
        raise RecipeError(
            "not understood", where=where, fix="write FIELD=a,b,c or FIELD=low..high or FIELD=low..high:log"
        )
    if name in UNIONS:
        name = f"{name}.type"
    if (name.startswith("data.") and name not in VARIED_DATA) or name in FIXED:
        raise RecipeError(
            f"{name} cannot vary: all trials share data and folder", where=where, fix="vary another field"
        )
    if ".." not in values:
        return Varied(name, tuple(_choice(part, where) for part in values.split(",")))
    bounds, _, scale = values.partition(":")
    low, high = (_number(part, where) for part in bounds.split("..", 1))
    if not low < high or scale not in ("", "log") or (scale == "log" and low <= 0):
        raise RecipeError("not a range", where=where, fix="write low..high with low < high; :log wants low above 0")
    return Varied(name, low=low, high=high, log=scale == "log")


def _choice(text: str, where: str) -> Any:
    """A value as a recipe file would have it; YAML takes 1e-4 for a text, which is meant as a number here."""
    try:
        found = yaml.load(text, Loader=RecipeLoader) if text.strip() else None
    except YAML_ERRORS:
        raise RecipeError(f"{text!r} is no value", where=where, fix="write FIELD=a,b,c") from None
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            return float(found) if math.isfinite(float(found)) else found
    return found


def check_space(space: Sequence[Varied], base: Recipe) -> None:
    """Refuse a field that no trial would have, and values that it does not take, before anything is trained.

    Raises:
        RecipeError: Likewise.
    """
    kinds = next((one.choices for one in space if one.name == "strategy.type"), (base.strategy.type,))
    kinds = tuple(trial_recipe(base, {"strategy.type": kind}).strategy.type for kind in kinds)
    for one in space:
        chosen: dict[str, Any] = {}
        section, _, leaf = one.name.partition(".")
        if section == "strategy" and leaf != "type":
            having = [kind for kind in kinds if leaf in _settings_of(kind)]
            if not having:
                raise RecipeError(f"no strategy here has {one.name}", where="--vary", fix="check the name")
            chosen = {"strategy.type": having[0]}
        for value in one.choices or (one.low, one.high):
            trial_recipe(base, {**chosen, one.name: value})


def _number(text: str, where: str) -> float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise RecipeError(f"{text!r} is no number", where=where, fix="write low..high")
    return found


def trial_recipe(base: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The base recipe with these values; a strategy of another type keeps none of the base's other settings.

    Raises:
        RecipeError: If they are no recipe.
    """
    settings = base.model_dump(mode="json", exclude_unset=True)
    for union in UNIONS:
        chosen = values.get(f"{union}.type")
        if chosen is not None and chosen != getattr(base, union).type:
            settings[union] = {"type": chosen}
    for name, value in values.items():
        *sections, leaf = name.split(".")
        part = settings
        for section in sections:
            part = part.setdefault(section, {})
        part[leaf] = value
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(first["msg"], where=".".join(map(str, first["loc"])), fix="mend --vary") from None


def suggest(space: Sequence[Varied], trial: optuna.Trial, base: Recipe) -> dict[str, Any]:
    """Values for a trial; settings that the chosen strategy does not have are left out."""
    found: dict[str, Any] = {}
    for one in sorted(space, key=lambda one: one.name not in ("strategy.type", "task.type")):
        section, _, leaf = one.name.partition(".")
        if section == "strategy" and leaf != "type":
            kind = found.get("strategy.type", base.strategy.type)
            if leaf not in _settings_of(kind):
                continue
        found[one.name] = one.suggest(trial)
    return found


def _settings_of(strategy: str) -> set[str]:
    members = get_args(get_args(StrategySettings)[0])
    return next(set(one.model_fields) for one in members if strategy in get_args(one.model_fields["type"].annotation))
