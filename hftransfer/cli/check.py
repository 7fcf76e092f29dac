"""`hftransfer check RECIPE`: what can be known to be wrong before a training runs."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hftransfer.cli.recipes import check_name
from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.recipe import Recipe
from hftransfer.terminal import console


def check(
    name: str,
    /,
    *,
    config: Path | None = None,
    strict: bool = False,
    json: bool = False,
    recipe: Annotated[Recipe, Parameter(name="*")],
) -> None:
    """Check data, labels, lengths, gradients, memory and time of a training that is not run; nothing is written.

    Exit status 2 if there are errors; docs/check.md says what every finding means.

    Args:
        name: The recipe, such as text_classification; `hftransfer recipes` lists them.
        config: YAML file with settings; a run's recipe.yaml is one.
        strict: Let warnings count as errors.
        json: Print the findings as JSON.
        recipe: The settings.
    """
    from hftransfer.cli.inputs import check_inputs

    check_name(name)
    check_inputs(recipe)
    from hftransfer.finetuning import check as check_recipe
    from hftransfer.run_files import plain_numbers

    report = check_recipe(recipe, origins=RecipeConfig.origins)
    if json:
        print(json_module.dumps(plain_numbers(report.as_data()), indent=1))
    else:
        console().print(report.table("error", "warning", "note"))
    report.refuse(strict=strict or recipe.preflight == "strict")
