"""`hftransfer sweep RECIPE ... --vary FIELD=VALUES`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.recipe import Recipe


def sweep(
    name: str,
    /,
    *,
    vary: list[str],
    trials: PositiveInt = 20,
    config: Path | None = None,
    recipe: Annotated[Recipe, Parameter(name="*")],
) -> None:
    """Try values of a recipe's fields on validation data, then test the best recipe once.

    Example: hftransfer sweep text_classification --config FILE.yaml --output_dir sweeps/reviews --trials 30
    --vary strategy.type=lora,top_layers --vary optim.learning_rate=1e-5..1e-3:log

    Args:
        name: The recipe, such as text_classification.
        vary: FIELD=a,b,c or FIELD=low..high or FIELD=low..high:log; again for every field.
        trials: How many trainings, those of earlier calls in the same folder included.
        config: YAML file with settings.
        recipe: The settings that do not vary; --output_dir is the sweep's folder.
    """
    from hftransfer.sweep import sweep as run_sweep
    from hftransfer.sweep_space import parse

    run_sweep(recipe, [parse(one) for one in vary], trials, RecipeConfig.origins)
