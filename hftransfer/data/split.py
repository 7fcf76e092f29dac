"""Cut a validation split off the training data: a pure function of the seed and the data.

Single labels are stratified exactly; lists of labels and grouped data are stratified as nearly as a greedy pass allows;
else the cut is random. No cut takes the last training example of a label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hftransfer.data.batching import Indices, random_order
from hftransfer.errors import DataError

_CUT, _SUBSET = 11, 12


@dataclass(frozen=True)
class LabelCodes:
    """The labels of every row in compressed sparse row form.

    Attributes:
        codes: Label numbers of all rows, one row after the other, shape (labels,).
        offsets: Row r has `codes[offsets[r]:offsets[r + 1]]`, shape (rows + 1,).
        num_labels: Number of distinct labels.
    """

    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    num_labels: int

    @property
    def single(self) -> bool:
        """Whether every row has exactly one label."""
        return bool(np.all(np.diff(self.offsets) == 1))

    def rows(self) -> NDArray[np.int64]:
        """The row of every entry of `codes`, shape (labels,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def encode_labels(column: pa.ChunkedArray) -> LabelCodes:
    """Number the distinct labels of a column of scalars or lists.

    Args:
        column: The labels without nulls, shape (rows,).
    """
    values = column.combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        counts = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        codes, num_labels = encode_values(pc.list_flatten(values))
        return LabelCodes(codes, offsets, num_labels)
    codes, num_labels = encode_values(values)
    return LabelCodes(codes, np.arange(len(codes) + 1), num_labels)


def encode_values(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.int64], int]:
    """Number the distinct values of a column in order of appearance.

    Returns:
        The number of every row's value, shape (rows,), and how many values there are.
    """
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = values.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, len(encoded.dictionary)


def cut_validation(
    num_rows: int,
    fraction: float,
    seed: int,
    *,
    labels: LabelCodes | None = None,
    groups: NDArray[np.int64] | None = None,
) -> tuple[Indices, Indices]:
    """Choose the rows of a validation split.

    Args:
        num_rows: Rows of the training data.
        fraction: Part of the rows that goes to validation, in (0, 1).
        seed: The recipe's seed, not negative.
        labels: Labels to stratify by; None for a random cut.
        groups: Group number of every row, shape (num_rows,): a group stays whole.

    Returns:
        The training rows and the validation rows, both ascending; disjoint, and together all rows.

    Raises:
        DataError: No validation split can be cut off without losing the only examples of a label.
    """
    target = min(num_rows - 1, max(1, round(num_rows * fraction)))
    if num_rows < 2:
        chosen = np.empty(0, np.int64)
    elif groups is None and labels is None:
        chosen = random_order(num_rows, seed, _CUT)[:target]
    elif groups is None and labels is not None and labels.single:
        chosen = _stratified(labels, target, seed)
    else:
        chosen = _greedy(num_rows, target, seed, labels, groups)
    if not len(chosen):
        raise DataError(
            "no validation split can be cut off train: it would take every example of a label",
            where="data.validation_fraction",
            fix="give a validation file, or training data with more examples per label (and more groups)",
        )
    in_validation = np.zeros(num_rows, bool)
    in_validation[chosen] = True
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def choose_subset(num_rows: int, count: int, seed: int, labels: LabelCodes | None = None) -> Indices:
    """Choose `count` training rows at random, keeping at least one row of every label while they fit.

    Args:
        num_rows: Rows to choose from.
        count: How many to keep.
        seed: The recipe's seed, not negative.
        labels: Labels of which none should vanish.

    Returns:
        The chosen rows, ascending, shape (min(count, num_rows),).
    """
    order = random_order(num_rows, seed, _SUBSET)
    if labels is not None:
        place = np.empty(num_rows, np.int64)
        place[order] = np.arange(num_rows)
        first = np.full(labels.num_labels, num_rows, np.int64)
        np.minimum.at(first, labels.codes, place[labels.rows()])
        carriers = np.unique(first)
        order = np.concatenate((order[carriers], np.delete(order, carriers)))
    return np.sort(order[:count])


def _stratified(labels: LabelCodes, target: int, seed: int) -> Indices:
    """Largest-remainder shares: each class gives its share rounded down or up, and keeps one row in train."""
    num_rows = len(labels.codes)
    order = random_order(num_rows, seed, _CUT)
    sizes = np.bincount(labels.codes, minlength=labels.num_labels)
    shares = sizes * (target / num_rows)
    # The tolerance keeps a share such as 2.9999999996 from being rounded down.
    quotas = np.floor(shares + 1e-9).astype(np.int64)
    by_remainder = np.argsort(-(shares - quotas), kind="stable")
    open_classes = by_remainder[quotas[by_remainder] < sizes[by_remainder] - 1]
    quotas[open_classes[: max(0, target - int(quotas.sum()))]] += 1
    by_class = order[np.argsort(labels.codes[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank_in_class = np.arange(num_rows) - np.repeat(starts, sizes)
    return by_class[rank_in_class < np.repeat(quotas, sizes)]


def _greedy(
    num_rows: int, target: int, seed: int, labels: LabelCodes | None, groups: NDArray[np.int64] | None
) -> Indices:
    """Take units (groups, or rows) while each brings the label counts closer to their shares.

    After iterative stratification (Sechidis et al. 2011) the units that hold the rarest labels come first, in random
    order among themselves. A unit is taken if that brings its rarest label, the number of rows, and the squared
    distances of all its labels, weighted by 1 / total, closer to what is wanted. The number of rows counts as a label
    of every row.
    """
    units = np.arange(num_rows) if groups is None else groups
    num_units = int(units.max()) + 1
    entry_rows, codes, num_codes = np.arange(num_rows), np.zeros(num_rows, np.int64), 1
    if labels is not None:
        entry_rows, codes = np.concatenate((entry_rows, labels.rows())), np.concatenate((codes, labels.codes + 1))
        num_codes += labels.num_labels
    # One entry per (unit, label) with the number of rows: a sparse table of counts.
    pairs, counts = np.unique(units[entry_rows] * num_codes + codes, return_counts=True)
    pair_units, pair_codes = np.divmod(pairs, num_codes)
    bounds = np.searchsorted(pair_units, np.arange(num_units + 1))
    totals = np.bincount(codes, minlength=num_codes)
    wanted = totals * (target / num_rows)
    rarity = np.minimum.reduceat(totals[pair_codes], bounds[:-1])
    order = random_order(num_units, seed, _CUT)
    taken = np.zeros(num_codes, np.int64)
    chosen: list[int] = []
    closest, closest_unit = np.inf, -1
    for unit in order[np.argsort(rarity[order], kind="stable")]:
        entries = slice(bounds[unit], bounds[unit + 1])
        unit_codes, unit_counts = pair_codes[entries], counts[entries]
        after = taken[unit_codes] + unit_counts
        if np.any(after >= totals[unit_codes]):
            continue
        gains = unit_counts * (after + taken[unit_codes] - 2 * wanted[unit_codes]) / totals[unit_codes]
        # Code 0, the number of rows, comes first in every unit.
        worst = max(gains[0], gains[np.argmin(totals[unit_codes])], np.sum(gains))
        if worst < 0:
            chosen.append(int(unit))
            taken[unit_codes] = after
        elif not chosen and worst < closest:
            closest, closest_unit = worst, int(unit)
    if not chosen and closest_unit >= 0:
        chosen.append(closest_unit)
    return np.flatnonzero(np.isin(units, chosen))
