"""`hftransfer run RECIPE ...` and `python recipes/RECIPE.py ...`: one main for both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from hftransfer import interruption
from hftransfer.cli.recipes import check_name, recipe_module
from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.recipe import Recipe

Main = Callable[[Recipe, Mapping[str, str]], Any]


def run(
    name: str,
    /,
    *,
    config: Path | None = None,
    recipe: Annotated[Recipe, Parameter(name="*")],
) -> None:
    """Fine-tune a checkpoint as a recipe says; default < YAML < flag.

    Example: hftransfer run text_classification --checkpoint google-bert/bert-base-uncased --data.train train.csv
    --data.text review --data.label stars --strategy.type lora --output_dir runs/reviews

    Args:
        name: The recipe, such as text_classification; `hftransfer recipes` lists them.
        config: YAML file with settings; a run's recipe.yaml is one.
        recipe: The settings.
    """
    from hftransfer.cli.inputs import check_inputs

    check_name(name)
    check_inputs(recipe)
    # From here on, so that a signal is heard while the libraries are loaded.
    with interruption.watched():
        recipe_module(name).main(recipe, RecipeConfig.origins)


def run_file(main: Main, task: str) -> None:
    """The command line of a recipe that is run as a file, `accelerate launch recipes/NAME.py --config FILE`.

    Args:
        main: Fine-tunes.
        task: The task of this recipe.
    """
    from hftransfer.cli.main import check_arguments, guarded

    app = App(
        help=sys.modules["__main__"].__doc__,
        default_parameter=Parameter(name_transform=str, negative_iterable=()),
        config=RecipeConfig(task),
        help_format="plaintext",
    )

    @app.default
    def default(*, config: Path | None = None, recipe: Annotated[Recipe, Parameter(name="*")]) -> None:
        """Fine-tune.

        Args:
            config: YAML file with settings.
            recipe: The settings.
        """
        from hftransfer.cli.inputs import check_inputs

        check_inputs(recipe, needs_data=False)
        with interruption.watched():
            main(recipe, RecipeConfig.origins)

    def action() -> None:
        check_arguments(sys.argv[1:])
        app(exit_on_error=False, print_error=False, result_action="return_value")

    sys.exit(guarded(action))
