"""Classes and groups in equal parts: weights of rows, and the cells that balanced sampling draws from.

Shape legend: N rows, K cells (a class, or a group together with a class).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hftransfer.recipe import DataSection
from hftransfer.setting_values import listed_columns

if TYPE_CHECKING:
    from datasets import Dataset

Balance = Literal["none", "classes", "groups", "sample_classes", "sample_groups"]
Codes = NDArray[np.int64]

BETWEEN = " & "
NO_GROUP = "(none)"


def group_name(value: object) -> str:
    """The name of a group as a cell holds it."""
    return NO_GROUP if value is None or value in ("", "nan") or value != value else str(value)


def group_names(dataset: Dataset, section: DataSection) -> list[str]:
    """The group of every row: the values of `data.sensitive`, of several columns together."""
    columns = [[group_name(value) for value in dataset[name][:]] for name in listed_columns(section.sensitive)]
    return [BETWEEN.join(values) for values in zip(*columns, strict=True)]


def reweighing(groups_N: Codes, labels_N: Codes) -> NDArray[np.float32]:
    """Weights that make label and group independent, of mean 1 (Kamiran and Calders 2012, section 5.1), (N,).

    A row of group g and label y weighs P(g) P(y) / P(g, y).

    Args:
        groups_N: The group of each row, from 0.
        labels_N: Its label, from 0.
    """
    cells_N = cells_of(groups_N, labels_N)
    counts = [np.bincount(codes_N) for codes_N in (groups_N, labels_N, cells_N)]
    of_group, of_label, of_cell = (
        count[codes_N] for count, codes_N in zip(counts, (groups_N, labels_N, cells_N), strict=True)
    )
    found: NDArray[np.float32] = (of_group * of_label / (of_cell * len(labels_N))).astype(np.float32)
    return found


def cells_of(groups_N: Codes, labels_N: Codes) -> Codes:
    """The number of each row's group and label together, from 0 without gaps, (N,)."""
    pairs_N = groups_N * (int(labels_N.max(initial=0)) + 1) + labels_N
    found: Codes = np.unique(pairs_N, return_inverse=True)[1].astype(np.int64)
    return found
