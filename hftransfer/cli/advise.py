"""`hftransfer advise RECIPE` and `hftransfer rank CHECKPOINT ...`: what to train, before anything is trained."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter, Token

from hftransfer.cli.recipes import check_name
from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.errors import RecipeError
from hftransfer.recipe import Recipe


def advise(
    name: str,
    /,
    *,
    config: Path | None = None,
    json: bool = False,
    recipe: Annotated[Recipe, Parameter(name="*")],
) -> None:
    """Say which strategy suits data and checkpoint, what each would score and cost; nothing is trained or written.

    Example: hftransfer advise text_classification --checkpoint google-bert/bert-base-uncased --data.train train.csv

    Args:
        name: The recipe, such as text_classification; `hftransfer recipes` lists them.
        config: YAML file with settings; its strategy is not looked at.
        json: Print the advice as JSON.
        recipe: The settings.
    """
    from hftransfer.cli.inputs import check_inputs
    from hftransfer.cli.tables import print_verdict

    check_name(name)
    check_inputs(recipe)
    from hftransfer.advice import advise as advise_recipe
    from hftransfer.advising import words

    found = advise_recipe(recipe)
    _print(words.as_data(found)) if json else print_verdict(words.verdict_of(found))


def rank(
    *checkpoints: str,
    config: Path | None = None,
    json: bool = False,
    recipe: Annotated[Recipe, Parameter(name="*")],
) -> None:
    """Say which of several checkpoints suits the data of a text classification best, without fine-tuning any.

    Example: hftransfer rank microsoft/MiniLM-L12-H384-uncased google-bert/bert-base-uncased --data.train train.csv

    Args:
        checkpoints: Hub ids or local folders.
        config: YAML file with settings; its checkpoint is not looked at.
        json: Print the ranking as JSON.
        recipe: The settings.
    """
    from hftransfer.cli.inputs import check_inputs
    from hftransfer.cli.tables import print_verdict

    if len(checkpoints) < 2:
        raise RecipeError("one checkpoint cannot be ranked", where="rank", fix="name two or more")
    for checkpoint in checkpoints:
        check_inputs(recipe.model_copy(update={"checkpoint": checkpoint}))
    from hftransfer.advice import rank as rank_checkpoints
    from hftransfer.advising import ranking

    found = rank_checkpoints(recipe, checkpoints, origins=RankConfig.origins)
    _print(ranking.as_data(found)) if json else print_verdict(ranking.verdict_of(found))


class RankConfig(RecipeConfig):
    """The recipe of a ranking: that of text classification, with the first of the checkpoints in it."""

    def __init__(self) -> None:
        super().__init__("text_classification")

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Put the first checkpoint where a recipe has its own."""
        named = next(argument for argument in arguments if not argument.keys and "CHECKPOINTS" in argument.names)
        place = next(argument for argument in arguments if argument.keys == ("checkpoint",))
        if place.tokens:
            raise RecipeError("has no place in a ranking", where="--checkpoint", fix="name checkpoints without it")
        if named.tokens:
            place.append(Token(keyword="--checkpoint", value=named.tokens[0].value, source="cli"))
        super().__call__(app, commands, arguments)


def _print(values: Any) -> None:
    from hftransfer.run_files import plain_numbers

    print(json_module.dumps(plain_numbers(values), indent=1))
