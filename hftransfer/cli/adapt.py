"""`hftransfer adapt RECIPE ... --texts FILE`: adapt the checkpoint to a domain's texts, then train the task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt

from hftransfer import interruption
from hftransfer.cli.yaml_config import RecipeConfig
from hftransfer.recipe import Recipe


def adapt(
    name: str,
    /,
    *,
    texts: str,
    texts_column: str | None = None,
    general: str | None = None,
    general_column: str | None = None,
    replay_share: float = 0.25,
    adapt_epochs: PositiveInt | None = None,
    adapt_steps: PositiveInt | None = None,
    adapt_rate: PositiveFloat = 1e-4,
    config: Path | None = None,
    recipe: Annotated[Recipe, Parameter(name="*")],
) -> None:
    """Adapt a checkpoint to the texts of a domain (masked_lm, or causal_lm for decoders), then train the task from it.

    Example: hftransfer adapt text_classification --checkpoint google-bert/bert-base-uncased --texts abstracts.txt
    --general news.txt --data.train train.csv --output_dir runs/adapted

    Args:
        name: The recipe of the task, such as text_classification.
        texts: Texts of the domain, labels not needed: .txt (one a line), csv, tsv, json, jsonl or parquet.
        texts_column: Their column; the task's text column or "text" when absent.
        general: General text; a share of it is mixed in, and what is forgotten of it is measured.
        general_column: Its column; as for the texts when absent.
        replay_share: Share of the rows of an epoch that are general text.
        adapt_epochs: Passes over the texts; 3 when absent.
        adapt_steps: Optimizer steps, in place of epochs.
        adapt_rate: Peak learning rate of the adaptation.
        config: YAML file with settings of the task.
        recipe: The settings of the task; --output_dir holds both runs, adaptation/ and task/.
    """
    from hftransfer.cli.recipes import check_name

    check_name(name)
    _check(recipe, replay_share, {"--texts": texts, "--general": general})
    with interruption.watched():
        from hftransfer.adaptation import AdaptationSettings
        from hftransfer.adaptation import adapt as run_both

        settings = AdaptationSettings(
            texts,
            texts_column,
            general,
            general_column,
            replay_share=replay_share,
            epochs=adapt_epochs,
            steps=adapt_steps,
            learning_rate=adapt_rate,
        )
        run_both(recipe, settings, origins=RecipeConfig.origins)


def _check(recipe: Recipe, replay_share: float, files: dict[str, str | None]) -> None:
    """Refuse what cannot work, before torch is loaded."""
    from hftransfer.cli.inputs import check_inputs
    from hftransfer.data.named import check_exists
    from hftransfer.errors import RecipeError

    if recipe.output_dir is None:
        raise RecipeError("no output folder", where="output_dir", fix="give --output_dir")
    if not 0 < replay_share < 1:
        raise RecipeError(f"{replay_share:g} is no share", where="--replay_share", fix="give a number between 0 and 1")
    for flag, path in files.items():
        if path is not None:
            check_exists(path, flag)
    check_inputs(recipe.model_copy(update={"output_dir": str(Path(recipe.output_dir, "task"))}))
