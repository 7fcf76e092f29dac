"""Replay: rows of general text or of an earlier task, mixed into the training rows so that less is forgotten.

The remedy is as old as the finding (Robins 1995, Connection Science 7(2)); with pretrained models a small share of
earlier data suffices (de Masson d'Autume et al. 2019, arXiv:1906.01076).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, concatenate_datasets
from numpy.typing import NDArray

from hftransfer.data.check import column_of
from hftransfer.data.kinds import is_list
from hftransfer.data.parts import Part
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection

STREAM = 71
"""Keeps the draw of the rows apart from other draws of the same seed."""
NAMED_LABELS = 5


def replayed_rows(own: int, share: float) -> int:
    """How many rows to add so that they are this share of all: share / (1 - share) of the own ones, one at least."""
    return max(1, round(own * share / (1 - share)))


def draw_rows(there: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Numbers of rows at random, shape (wanted,): none comes a second time before all have come once."""
    rng = np.random.default_rng([seed, STREAM])
    passes = [rng.permutation(there) for _ in range(-(-wanted // there))]
    return np.concatenate(passes)[:wanted]


def mix(
    train: Dataset, replayed: Part, section: DataSection, seed: int, has_classes: bool, notes: list[str]
) -> Dataset:
    """The training rows and behind them the replayed ones; a training's own shuffling mixes them in every epoch.

    Args:
        train: The training rows, validation rows cut off.
        replayed: Rows to draw from, with the same columns, of which `section.group` alone may be absent.
        section: Says which share they are to have.
        seed: Decides which rows are drawn.
        has_classes: Whether labels are classes: those that only the replayed rows have are told.
        notes: What is said to the user; appended to.

    Raises:
        DataError: If a column holds something else than it does in the training rows.
    """
    share, there = section.replay_share, len(replayed.dataset)
    rows = draw_rows(there, replayed_rows(len(train), share), seed)
    added = replayed.dataset.select(rows)
    if section.group is not None:
        added = added.add_column(section.group, [None] * len(added))
    added, wanted = added.select_columns(train.column_names), Features(train.features)
    try:
        added = added if added.features == wanted else added.cast(wanted)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"its columns are of other types than those of the training data ({error})",
            where=replayed.where,
            fix="store both in the same types",
        ) from error
    repeated = f", each {len(rows) / there:.1f} times" if len(rows) > there else f" of {there:,}, seed {seed}"
    notes.append(
        f"replay: {len(rows):,} rows{repeated}, mixed into {len(train):,} training rows "
        f"({len(rows) / (len(rows) + len(train)):.0%} of an epoch)"
    )
    new = _new_labels(train, added, section.label) if has_classes else []
    if new:
        more = f" and {len(new) - NAMED_LABELS} more" if len(new) > NAMED_LABELS else ""
        listed = ", ".join(map(repr, new[:NAMED_LABELS])) + more
        notes.append(f"replay: brings labels that the training rows lack, which are learnt, too: {listed}")
    return concatenate_datasets([train, added])


def _new_labels(train: Dataset, added: Dataset, label: str) -> list[object]:
    """The classes that only the added rows have."""

    def classes(dataset: Dataset) -> pa.Array:
        column = column_of(dataset, label).combine_chunks()
        return pc.unique(pc.list_flatten(column) if is_list(column.type) else column)

    if pa.types.is_floating(column_of(train, label).type):
        return []
    known = set(classes(train).to_pylist())
    return [value for value in classes(added).to_pylist() if value not in known]
