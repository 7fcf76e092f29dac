"""Identity terms: the built-in list, exchanges, files of one's own, augmentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer import Recipe
from hftransfer.data.augment import check_remedies, with_counterfactuals
from hftransfer.data.load import splits_from_objects
from hftransfer.data.terms import augmented, load_terms
from hftransfer.errors import UserError

BUILTIN = {axis.name: axis for axis in load_terms("builtin", "terms")}
WORDS = sorted(BUILTIN["gender"].places)


def test_terms_are_exchanged_in_their_case_and_whole() -> None:
    gender = BUILTIN["gender"]
    assert gender.exchange("She saw HER brother; shell, heap.", 0, 1) == "He saw HIS sister; shell, heap."
    assert gender.groups_in("The shelter is theirs") == []
    religion = BUILTIN["religion"]
    assert religion.groups_in("Muslims and a Jew, Jewish") == [1, 2]
    assert religion.exchange("Muslims are Jewish", 1, 2) == "Jews are Muslim"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "tree", "runs"]), min_size=1, max_size=12))
def test_a_term_of_one_slot_comes_back(words: list[str]) -> None:
    gender = BUILTIN["gender"]
    once = {"her", "his", "him", "hers"}
    text = " ".join(word for word in words if word not in once)
    assert gender.exchange(gender.exchange(text, 0, 1), 0, 1) == text


def test_every_other_group_is_tried_once() -> None:
    religion = BUILTIN["religion"]
    found = list(religion.counterfactuals(["A Muslim and a Hindu."]))
    assert len(found) == 9
    assert len({tuple(texts) for _, _, texts in found}) == 9
    assert list(religion.counterfactuals(["Nobody."])) == []


def test_a_file_extends_the_list_or_takes_its_place(tmp_path: Path) -> None:
    own = tmp_path / "terms.yaml"
    own.write_text(
        "axes: {pets: {groups: [cats, dogs], slots: [[cat, dog]]}, age: {groups: [o, y], slots: [[ox, calf]]}}"
    )
    found = {axis.name: axis for axis in load_terms(str(own), "--terms")}
    assert {"gender", "pets", "age"} <= set(found)
    assert found["age"].groups == ("o", "y")
    own.write_text("builtin: false\n" + own.read_text())
    assert [axis.name for axis in load_terms(str(own), "--terms")] == ["pets", "age"]
    table = tmp_path / "terms.csv"
    table.write_text("axis,slot,group,term\npets,1,cats,Cat\npets,1,dogs,Dog\npets,2,cats,kitten\npets,2,dogs,puppy\n")
    pets = {axis.name: axis for axis in load_terms(str(table), "--terms")}["pets"]
    assert pets.exchange("A kitten, a CAT", 0, 1) == "A puppy, a DOG"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "axes: {}", "no axes"),
        ("a.yaml", "axes: {x: {groups: [a], slots: [[a]]}}", "two or more"),
        ("a.yaml", "axes: {x: {groups: [a, b], slots: [[a]]}}", "one term per group"),
        ("a.yaml", "axes: {x: {groups: [a, b], slots: [[a, b], [b, a]]}}", "two groups"),
        ("a.yaml", "axes: [", "not a term list"),
        ("a.csv", "axis,term\n", "not the columns"),
        ("a.csv", "axis,slot,group,term\nx,1,,a\n", "empty cell"),
        ("a.txt", "", "yaml or csv"),
    ],
)
def test_what_is_no_term_list_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_terms(str(tmp_path / name), "--terms")
    with pytest.raises(UserError, match="no such file"):
        load_terms(str(tmp_path / "absent.yaml"), "--terms")


def test_augmentation_is_the_same_every_time_and_leaves_other_rows_alone() -> None:
    axes = list(BUILTIN.values())
    assert augmented(["A tree."], axes) is None
    first = augmented(["The Muslim woman."], axes)
    assert first == augmented(["The Muslim woman."], axes)
    assert first is not None
    assert first[0].endswith(" man.")
    assert "Muslim" not in first[0]


def test_only_training_texts_get_copies_with_the_same_label() -> None:
    rows = [{"text": text, "label": label} for text, label in (("she won", "a"), ("a tree", "b"), ("he lost", "b"))]
    recipe = Recipe(checkpoint="x", data={"counterfactuals": "builtin"})
    splits = splits_from_objects(rows, rows, None, recipe.data, seed=0, stratify=True)
    found = with_counterfactuals(splits, recipe)
    assert found.train["text"][:] == ["she won", "a tree", "he lost", "he won", "she lost"]
    assert found.train["label"][:] == ["a", "b", "b", "a", "b"]
    assert len(found.validation) == 3
    assert "2 of 3 rows name a group" in found.notes[-1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"task": {"balance": "groups"}}, "no columns with groups"),
        ({"task": "masked_lm", "data": {"counterfactuals": "builtin"}}, "for text classification"),
        ({"data": {"counterfactuals": "builtin", "streaming": True}}, "all rows at once"),
        ({"data": {"streaming": True}, "task": {"balance": "sample_classes"}}, "all rows at once"),
        ({"data": {"counterfactuals": "nothing.yaml"}}, "no such file"),
    ],
)
def test_remedies_that_do_not_fit_are_refused(parts: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_remedies(Recipe(checkpoint="x", **parts))
