"""Rows of one split that are in another, too: exactly, or nearly in every column.

Shape legend: N rows, H hash functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hftransfer.data import similar

COMPARED_PAIRS = 20_000
"""At most so many candidate pairs are compared exactly."""
BETWEEN = "\x1f"
"""Stands between the texts of a row where they are compared as one."""

Columns = Sequence[Sequence[str]]
"""For every input column the text of each row."""


def joined(columns: Columns) -> list[str]:
    """The texts of every row as one."""
    return list(columns[0]) if len(columns) == 1 else [BETWEEN.join(row) for row in zip(*columns, strict=True)]


def plain_rows(columns: Columns) -> list[str]:
    """The texts of every row as one, in lower case and without signs."""
    return joined([[similar.plain(text) for text in column] for column in columns])


def signatures(columns: Columns) -> NDArray[np.uint32]:
    """The MinHash signatures of rows, (N, H)."""
    return similar.signatures(plain_rows(columns))


def near_rows(
    known: Columns,
    asked: Columns,
    exact_N: NDArray[np.bool_],
    known_NH: NDArray[np.uint32],
    asked_NH: NDArray[np.uint32],
) -> dict[int, int]:
    """Row of `asked` -> a row of `known` that is near in every column; rows that are there exactly are left out.

    Args:
        known: Texts of one split.
        asked: Texts of the other.
        exact_N: Which rows of `asked` are in `known` exactly.
        known_NH: Signatures of `known`.
        asked_NH: Signatures of `asked`.
    """
    pairs = similar.candidates(known_NH, asked_NH)
    pairs = pairs[~exact_N[pairs[:, 0]]]
    alike = similar.agreement(known_NH, asked_NH, pairs)
    # Two standard deviations below the threshold: 60 functions estimate a similarity of 0.85 within 0.05.
    order = np.argsort(-alike, kind="stable")[: int((alike >= similar.NEAR - 0.1).sum())][:COMPARED_PAIRS]
    found: dict[int, int] = {}
    columns = list(zip(asked, known, strict=True))
    for one, other in pairs[order].tolist():
        if one not in found and all(_near(column[one], its[other]) for column, its in columns):
            found[one] = other
    return found


def copies(known: Columns, asked: Columns) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows of `asked` are in `known` exactly, and which are there nearly but not exactly, (N,) each."""
    exact_N = np.isin(similar.text_hashes(joined(asked)), similar.text_hashes(joined(known)))
    near_N = np.zeros(len(exact_N), bool)
    near_N[list(near_rows(known, asked, exact_N, signatures(known), signatures(asked)))] = True
    return exact_N, near_N


def _near(one: str, other: str) -> bool:
    plain = similar.plain(one), similar.plain(other)
    # Signs alone: what is left of them says nothing.
    if not all(plain):
        return one.strip() == other.strip()
    return plain[0] == plain[1] or similar.similarity(*map(similar.pieces, plain)) >= similar.NEAR
