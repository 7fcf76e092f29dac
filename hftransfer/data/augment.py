"""Counterfactual augmentation: training texts that name a group get a copy with another group in its place.

Lu et al. (2018, arXiv:1807.11714) for gender, here for every axis of a term list; the label stays. Validation and test
data stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hftransfer.data.terms import augmented, load_terms
from hftransfer.errors import RecipeError
from hftransfer.recipe import GROUP_BALANCES, NO_GROUPS, Recipe
from hftransfer.setting_values import listed_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from hftransfer.data.load import Splits

AUGMENTED_TASK = "text_classification"
WHERE = "data.counterfactuals"


def check_remedies(recipe: Recipe) -> None:
    """Refuse remedies of bias that need what the recipe does not give; loads no library.

    Raises:
        UserError: No groups, another task, streamed data, or a term list that cannot be read.
    """
    balance = getattr(recipe.task, "balance", "none")
    if balance in GROUP_BALANCES and not listed_columns(recipe.data.sensitive):
        raise RecipeError(NO_GROUPS, where=f"task.balance {balance}", fix="name them with data.sensitive")
    if recipe.data.streaming and balance not in ("none", "classes"):
        raise RecipeError("needs all rows at once", where=f"task.balance {balance}", fix="use classes, or no streaming")
    if recipe.data.counterfactuals is None:
        return
    if recipe.task.type != AUGMENTED_TASK:
        raise RecipeError("is for text classification", where=WHERE, fix="leave it out")
    if recipe.data.streaming:
        raise RecipeError("needs all rows at once", where=WHERE, fix="leave it out, or --data.streaming false")
    load_terms(recipe.data.counterfactuals, WHERE)


def with_counterfactuals(splits: Splits, recipe: Recipe) -> Splits:
    """The splits, with copies in train if the recipe asks for them, and a note that says how many.

    Raises:
        DataError: If the term list cannot be read.
    """
    source = recipe.data.counterfactuals
    if source is None:
        return splits
    axes = load_terms(source, WHERE)
    names = list(recipe.task.input_columns(recipe.data))
    rows, texts = [], []
    for row, values in enumerate(zip(*(splits.train[name][:] for name in names), strict=True)):
        changed = augmented(values, axes)
        if changed is not None:
            rows.append(row)
            texts.append(changed)
    note = (
        f"train: {len(rows):,} of {len(splits.train):,} rows name a group of {source}; a copy of each with another "
        "group in its place is learnt from, too"
    )
    train = _with_copies(splits.train, rows, dict(zip(names, map(list, zip(*texts, strict=True)), strict=bool(rows))))
    return replace(splits, train=train, notes=(*splits.notes, note))


def _with_copies(train: Dataset, rows: list[int], texts: dict[str, list[str]]) -> Dataset:
    """Rows with other texts behind all rows."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, concatenate_datasets

    if not rows:
        return train
    table = train.select(rows).with_format("arrow")[:]
    for name, values in texts.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return concatenate_datasets([train, Dataset(table, info=DatasetInfo(features=train.features))])
