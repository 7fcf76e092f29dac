"""Checks on one split: each bad row is named."""

from __future__ import annotations

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hftransfer.data.check import check_columns, check_groups_apart, check_labels_known, check_several_classes
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, TokenClassification

SECTION = DataSection()


def data(**columns):
    return Dataset(pa.table({"text": ["one", "two", "three"], "label": ["a", "b", "a"], **columns}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None, "b"]}, r"here, row 2: no text in column 'text'"),
        ({"text": ["a", "b", "b\0c"]}, r"here, row 3: a NUL byte in column 'text'"),
        ({"text": [1, 2, 3]}, r"here: column 'text' holds int64, not text, such as 1"),
        ({"label": ["a", "b", None]}, r"here, row 3: no label in column 'label'"),
        ({"label": ["a", " ", ""]}, r"here, row 2: an empty label in column 'label' \(in 2 rows in all\)"),
        ({"label": [0.5, float("nan"), 1.0]}, r"here, row 2: no label"),
        ({"label": [0.5, float("inf"), 1.0]}, r"here, row 2: an infinite label"),
        ({"label": [[], ["a"], ["b", None]]}, r"here, row 3: a null among the labels"),
        ({"label": [["a"], ["", "b"], ["b"]]}, r"here, row 2: an empty label"),
        ({"label": [{"a": 1}, {"a": 1}, {"a": 2}]}, r"here: labels in column 'label' are struct"),
    ],
)
def test_bad_values_are_named_with_their_row(columns, message):
    with pytest.raises(DataError, match=message) as caught:
        check_columns(data(**columns), SECTION, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels", [["a", "b", "NA"], [0, 1, 2], [0.1, 2.0, 3.0], [True, False, True], [["a"], [], ["b"]], [[1], [], [0]]]
)
def test_good_labels_pass(labels):
    check_columns(data(label=labels), SECTION, "here")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_other_string_types_pass(kind):
    check_columns(
        data(text=pa.array(["a", "", "c"]).cast(kind), label=pa.array(["a", "b", "a"]).cast(kind)), SECTION, "here"
    )


def test_a_missing_column_is_guessed():
    dataset = Dataset(pa.table({"Text ": ["a"], "labels": ["b"]}))
    with pytest.raises(DataError, match=r"no column 'text'; there are 'Text ', 'labels'; did you mean 'Text '\?"):
        check_columns(dataset, SECTION, "here")
    with pytest.raises(DataError, match=r"did you mean 'labels'\?"):
        check_columns(dataset, DataSection(text="Text "), "here")


def test_labels_are_not_needed_for_prediction():
    check_columns(Dataset(pa.table({"text": ["a"]})), SECTION, "here", labelled=False)


def test_an_empty_split_is_an_error():
    with pytest.raises(DataError, match="here: no rows"):
        check_columns(data().select([]), SECTION, "here")


def test_minus_one_is_no_class():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    dataset = Dataset.from_dict({"text": ["x", "y"], "label": [1, -1]}, features=features)
    with pytest.raises(DataError, match=r"row 2: no label \(-1\)"):
        check_columns(dataset, SECTION, "here")


def test_a_missing_group_is_an_error():
    with pytest.raises(DataError, match="row 1: no value in 'author'"):
        check_columns(data(author=[None, "x", "y"]), DataSection(group="author"), "here")


def test_rows_follow_a_selection():
    dataset = data(label=["a", None, "b"]).select([2, 1])
    with pytest.raises(DataError, match="row 2: no label"):
        check_columns(dataset, SECTION, "here")


def test_one_class_alone_is_an_error():
    with pytest.raises(DataError, match="every row has the label 'a'"):
        check_several_classes(data(label=["a", "a", "a"]), SECTION, "train")
    check_several_classes(data(), SECTION, "train")


def test_unknown_labels_are_named():
    with pytest.raises(DataError, match=r"test: .* 'b' \(row 2\).*known labels are 'a', 'c'"):
        check_labels_known(data(), SECTION, ["a", "c"], where="test")
    lists = Dataset.from_dict(
        {"text": ["x", "y"], "label": [["a"], ["a", "z"]]},
        features=Features({"text": Value("string"), "label": List(Value("string"))}),
    )
    with pytest.raises(DataError, match=r"'z' \(line 9\)"):
        check_labels_known(lists, SECTION, ["a"], where="test", locate=lambda row: f"line {row + 8}")
    with pytest.raises(DataError, match="and 2 more"):
        check_labels_known(Dataset.from_dict({"text": ["x"] * 7, "label": list("abcdefg")}), SECTION, [], where="test")


@pytest.mark.parametrize("known", [[0, 1], ["0", "1"], [0.0, 1.0]])
def test_labels_are_compared_by_name(known):
    check_labels_known(data(label=[0, 1, 1]), SECTION, known, where="test")


def test_groups_must_stay_apart():
    first, second = data(author=["x", "y", "z"]), data(author=["v", "w", "y"])
    with pytest.raises(DataError, match="test, row 3: a value of 'author' that train has, too"):
        check_groups_apart(first, second, "author", where="test")
    check_groups_apart(first, second.select([0, 1]), "author", where="test")


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (
            ["a film", "b"],
            [[{"start": 0, "end": 1, "label": None}], []],
            r"here, row 1: the span 0 to 1 .* has no label",
        ),
        (
            ["a film", "b"],
            [[], [{"start": 0, "end": 1, "label": " "}]],
            r"here, row 2: the span 0 to 1 .* has no label",
        ),
        (
            [["film"], ["b"]],
            [[{"start": 0, "end": 1, "label": "x"}]] * 2,
            r"holds spans, .* but 'text' holds words",
        ),
    ],
)
def test_spans_mark_raw_text_and_say_what(text, label, message):
    dataset = Dataset(pa.table({"text": text, "label": label}))
    with pytest.raises(DataError, match=message):
        check_columns(dataset, SECTION, "here", task=TokenClassification())
