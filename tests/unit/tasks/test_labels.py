"""From label columns to problems, names and numbers."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hftransfer.errors import DataError
from hftransfer.tasks.labels import Labels, column_names, infer_labels


def infer(values, problem="auto", feature=None):
    features = None if feature is None else Features({"label": feature})
    return infer_labels(Dataset.from_dict({"label": values}, features=features), "label", problem, "train")


@pytest.mark.parametrize(
    ("values", "problem", "names"),
    [
        (["pos", "neg", "pos"], "single_label", ("neg", "pos")),
        ([10, 9, 2], "single_label", ("2", "9", "10")),
        ([1.0, 0.0, 2.0], "single_label", ("0", "1", "2")),
        ([True, False], "single_label", ("False", "True")),
        ([["b"], [], ["a", "b"]], "multi_label", ("a", "b")),
        ([[2], [10, 1]], "multi_label", ("1", "2", "10")),
        ([0.5, 1.0], "regression", ()),
    ],
)
def test_problem_and_names_are_inferred(values, problem, names):
    assert infer(values) == Labels(problem, names)


def test_a_class_label_keeps_its_order_and_absent_names():
    assert infer([2, 0], feature=ClassLabel(names=["z", "y", "x"])).names == ("z", "y", "x")
    assert infer([[1], [0, 1]], feature=List(ClassLabel(names=["q", "p"]))) == Labels("multi_label", ("q", "p"))


def test_declared_names_are_labels_however_few_rows_there_are():
    names = [f"intent{index}" for index in range(60)]
    assert infer([0, 5, 7], feature=ClassLabel(names=names)).num_outputs == 60


def test_the_user_may_say_regression():
    assert infer([1, 2, 3], "regression") == Labels("regression", ())
    assert Labels("regression", ()).num_outputs == 1


@pytest.mark.parametrize(
    ("values", "problem", "message"),
    [
        (["a", "a"], "auto", "1 class"),
        ([["a"], ["a"]], "auto", "1 class"),
        ([f"id{index}" for index in range(30)], "auto", "30 different labels in 30 rows"),
        ([["a"], ["b"]], "single_label", "the labels are lists"),
        (["a", "b"], "multi_label", "the labels are single values"),
    ],
)
def test_labels_that_leave_nothing_to_learn_are_refused(values, problem, message):
    with pytest.raises(DataError, match=message):
        infer(values, problem)


def test_encoding():
    single = Labels("single_label", ("0", "1", "x"))
    assert single.encode(["x", 0, 1.0], "column").tolist() == [2, 0, 1]
    multi = Labels("multi_label", ("a", "b", "c")).encode([["c", "a"], [], ["b", "b"]], "column")
    assert multi.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert multi.dtype == np.float32
    assert Labels("regression", ()).encode([1, 2.5], "column").tolist() == [1.0, 2.5]


def test_an_unknown_label_is_named_with_its_row():
    with pytest.raises(DataError, match=r"column 'y': row 3: label 'c'"):
        Labels("single_label", ("a", "b")).encode(["a", "b", "c"], "column 'y'")
    with pytest.raises(DataError, match="row 2: label 'z'"):
        Labels("multi_label", ("a", "b")).encode([["a"], ["b", "z"]], "column")


def test_a_text_is_no_number():
    with pytest.raises(DataError, match="not a number"):
        Labels("regression", ()).encode(["warm", "cold"], "column")


@pytest.mark.parametrize("feature", [ClassLabel(names=["a", "b"]), List(ClassLabel(names=["a", "b"]))])
def test_no_label_does_not_become_the_last_name(feature):
    many = isinstance(feature, List)
    values = [[1], [-1]] if many else [1, -1]
    dataset = Dataset.from_dict({"label": values}, features=Features({"label": feature}))
    names = column_names(dataset, "label")
    assert names == ([["b"], [-1]] if many else ["b", -1])
    with pytest.raises(DataError, match="row 2: label -1"):
        Labels("multi_label" if many else "single_label", ("a", "b")).encode(names, "column")


def test_a_plain_column_stays_as_it_is():
    dataset = Dataset.from_dict({"label": [3, 4]}, features=Features({"label": Value("int64")}))
    assert column_names(dataset, "label") == [3, 4]


def test_lists_are_no_single_labels_and_single_labels_no_lists():
    with pytest.raises(DataError, match=r"test: the labels are single values"):
        Labels("multi_label", ("a", "b")).encode([1, 0], "test")
    with pytest.raises(DataError, match=r"test: the labels are lists"):
        Labels("single_label", ("a", "b")).encode([["a"]], "test")
    assert Labels("multi_label", ("a", "b")).encode([], "test").shape == (0, 2)


def test_the_row_without_a_number_is_named():
    with pytest.raises(DataError, match=r"test: the label 'n/a' of row 3 is not a number"):
        Labels("regression", ()).encode(["1.5", "2", "n/a", "3"], "test")
