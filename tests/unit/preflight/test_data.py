"""Each fault that is planted in data is found, and clean data have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hftransfer.data.load import Splits
from hftransfer.preflight.data import check_data
from hftransfer.preflight.findings import Finding
from hftransfer.preflight.rows import rows_of_splits
from hftransfer.preflight.swapped import swapped_labels
from hftransfer.recipe import Recipe

GOOD, BAD = ["lovely", "great", "fine", "happy", "bright"], ["awful", "dull", "sad", "poor", "grim"]


def examples(count: int, seed: int) -> list[dict[str, Any]]:
    """Different texts whose words tell the label."""
    random = np.random.default_rng(seed)
    found = []
    for row in range(count):
        words = [str(word) for word in random.choice((BAD, GOOD)[row % 2], 4)]
        filler = [f"{chr(97 + number % 26)}{number}" for number in random.integers(0, 90000, 8)]
        found.append({"text": " ".join([*words, *filler]), "label": ("no", "yes")[row % 2]})
    return found


def findings(
    train: Any, validation: Any = None, test: Any = None, problem: str = "single_label", **recipe: Any
) -> list[Finding]:
    rows = [None if part is None else Dataset.from_list(part) for part in (train, validation, test)]
    settings = Recipe(checkpoint="m", **{"data": {"train": "t", "validation": "v"}, **recipe})
    splits = rows_of_splits(
        Splits(rows[0], rows[1] or Dataset.from_list(examples(20, 99)), rows[2], ()), settings, problem
    )
    found = check_data(splits, settings, problem, thorough=True)
    return found + (swapped_labels(splits) if problem == "single_label" else [])


def codes(found: Sequence[Finding], *severities: str) -> set[str]:
    return {finding.code for finding in found if finding.severity in (severities or ("error", "warning", "note"))}


def only(found: Sequence[Finding], code: str) -> Finding:
    (one,) = [finding for finding in found if finding.code == code]
    return one


def test_clean_data_have_no_findings() -> None:
    assert codes(findings(examples(200, 0), examples(100, 1), examples(100, 2))) == set()


def test_copies_between_splits_are_found_exact_and_near() -> None:
    train, test = examples(200, 0), examples(100, 2)
    test[3] = dict(train[7])
    test[5] = {**train[9], "text": train[9]["text"].upper() + " !"}
    test[8] = {**train[20], "text": train[20]["text"].replace(train[20]["text"].split()[-1], "q1")}
    found = only(findings(train, None, test), "duplicates")
    assert (found.severity, found.where, found.facts["exact"], found.facts["near"]) == ("warning", "test", 1, 2)
    assert sorted(found.facts["pairs"]) == [[4, 8], [6, 10], [9, 21]]
    assert train[7]["text"] not in str(found)


def test_a_few_copies_are_a_note() -> None:
    train, test = examples(200, 0), examples(300, 2)
    test[3] = dict(train[7])
    assert only(findings(train, None, test), "duplicates").severity == "note"


def test_rows_keep_the_numbers_of_their_file() -> None:
    train = examples(60, 0)
    train[50] = dict(train[1])
    whole = Dataset.from_list(train)
    splits = Splits(whole.select([*range(39), 59]), whole.select([39, *range(41, 59)]), None, ())
    recipe = Recipe(checkpoint="m", data={"train": "t"})
    found = only(
        check_data(rows_of_splits(splits, recipe, "single_label"), recipe, "single_label", thorough=True), "duplicates"
    )
    assert found.facts["pairs"] == [[51, 2]]
    assert "data.group" in found.fix


def test_flipped_labels_are_found_in_copies_and_in_a_whole_split() -> None:
    train, test = examples(200, 0), examples(100, 2)
    flipped = [{**row, "label": {"no": "yes", "yes": "no"}[row["label"]]} for row in test]
    found = only(findings(train, None, flipped), "swapped_labels")
    assert "'no' for 'yes'" in found.what
    assert (found.severity, found.where) == ("warning", "test")
    train += [{**row, "label": {"no": "yes", "yes": "no"}[row["label"]]} for row in train[:6]]
    inside = only(findings(train), "conflicting_labels")
    assert (inside.severity, inside.facts["rows"]) == ("warning", 12)
    assert codes(findings(examples(200, 0), None, [*test, *train[-3:]])) >= {"conflicting_labels", "duplicates"}


def test_scores_conflict_when_they_are_far_apart() -> None:
    rows = [{"text": f"text {row} {row * row}", "label": float(row % 11) / 2} for row in range(80)]
    close = [*rows, {"text": rows[4]["text"], "label": rows[4]["label"] + 0.1}]
    far = [*rows, {"text": rows[4]["text"], "label": rows[4]["label"] + 2.0}]
    other = [{"text": "something else", "label": 0.5}] * 2
    assert "conflicting_labels" not in codes(findings(close, other, problem="regression"))
    assert "conflicting_labels" in codes(findings(far, other, problem="regression"))


def test_unbalanced_classes_are_found() -> None:
    train = [{**row, "label": "no"} if at % 50 else row for at, row in enumerate(examples(200, 0))]
    train[0]["label"] = train[50]["label"] = "yes"
    found = findings(train, examples(120, 1))
    assert codes(found, "warning") == {"dominating_class", "rare_classes", "label_shift"}
    assert only(found, "dominating_class").facts["class"] == "no"
    weighed = findings(train, examples(120, 1), task={"balance": "classes"}, evaluation={"metric": "f1_macro"})
    assert only(weighed, "dominating_class").severity == "note"


def test_a_class_that_means_no_label_is_found() -> None:
    train = [{**row, "label": "NaN"} if at % 10 == 0 else row for at, row in enumerate(examples(200, 0))]
    found = only(findings(train, examples(120, 1)), "unlabelled_class")
    assert (found.severity, found.facts["classes"]) == ("warning", {"NaN": 20})
    assert "unlabelled_class" not in codes(findings(examples(200, 0), examples(120, 1)))


def test_absent_classes_and_blank_texts_are_found() -> None:
    test = [{**row, "label": "no"} for row in examples(30, 3)]
    test[2]["text"] = "  "
    found = findings(examples(100, 0), None, test)
    assert "'yes'" in only([finding for finding in found if finding.where == "test"], "absent_classes").what
    assert only(found, "blank_texts").what.endswith("row 3")


@pytest.mark.parametrize("task", ["question_answering", "multiple_choice", "token_classification", "seq2seq"])
def test_every_kind_of_columns_is_read(task: str) -> None:
    made = {
        "question_answering": ({"text_pair": "context"}, {"context": "a very long context of many words " * 3}, {}),
        "multiple_choice": ({"text_pair": "choices"}, {"choices": ["one", "two"], "label": 0}, {}),
        "token_classification": ({}, {"label": ["O", "O"]}, {"text": ["red", "blue"]}),
        "seq2seq": ({}, {"label": ["out", "other"]}, {}),
    }
    columns, fields, text = made[task]
    answers = {"label": {"text": ["a"], "answer_start": [0]}} if task == "question_answering" else {}
    train = [{"text": f"number {row} {row * 7919}", **fields, **answers} for row in range(20)]
    test = [{"text": f"other {row} {row * 104729}", **fields, **answers} for row in range(10)] + [dict(train[4])]
    if text:
        train = [{**row, "text": row["text"].split()} for row in train]
        test = [{**row, "text": row["text"].split()} for row in test]
    data = {"train": "t", "validation": "v", **columns}
    found = findings(train, train[:1], test, problem="none", task=task, data=data)
    assert {finding.where for finding in found if finding.code == "duplicates"} == {"validation", "test"}
    assert ("shared_texts" in codes(found)) == (task == "question_answering")


def test_a_split_without_a_single_label_is_told_and_no_reason_to_fail() -> None:
    train, test = ([{**row, "label": [row["label"]]} for row in examples(120, seed)] for seed in (0, 2))
    found = findings(train, train[:20], [{**row, "label": []} for row in test], problem="multi_label")
    assert only(found, "absent_classes").where == "test"
    assert "label_shift" not in codes(found)
