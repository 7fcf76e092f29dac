"""Which rows may be together, and what counts as a class."""

from __future__ import annotations

import pytest

from hftransfer.data.load import splits_from_objects
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection

ROWS = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(40)]


def from_objects(train, validation=None, test=None, **fields):
    return splits_from_objects(train, validation, test, DataSection(**fields), seed=1, stratify=True)


def test_a_group_of_validation_is_kept_out_of_test_as_well():
    rows = [{**row, "author": f"{part}{at}"} for part in "ab" for at, row in enumerate(ROWS)]
    train, held = rows[: len(ROWS)], rows[len(ROWS) :]
    with pytest.raises(DataError, match=r"a value of 'author' that validation has, too"):
        from_objects(train, validation=held, test=held[:3], group="author")


def test_whole_numbers_with_a_decimal_point_are_classes():
    rows = [{"text": f"text {at}", "label": label} for at, label in enumerate([0.0] * 20 + [1.0] * 20 + [2.0])]
    for seed in range(5):
        found = splits_from_objects(rows, None, None, DataSection(), seed=seed, stratify=True)
        assert 2.0 in found.train["label"][:]
        assert any("stratified" in note for note in found.notes)
    with pytest.raises(DataError, match=r"labels that the training data does not have: 3.0"):
        from_objects(rows, test=[{"text": "other", "label": 3.0}])


def test_numbers_with_fractions_are_no_classes():
    rows = [{"text": f"text {at}", "label": at / 2} for at in range(20)]
    assert any("random" in note for note in from_objects(rows).notes)
