"""Splits from files, saved folders, a stand-in for the Hub, and memory."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from hftransfer.data import load
from hftransfer.data.load import load_file, load_splits, splits_from_objects
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection

ROWS = [{"text": f"text {number}", "label": "ab"[number % 2], "extra": number} for number in range(40)]
CLASSES = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with one data set in every format."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(ROWS)
    frame.to_csv("train.csv", index=False)
    frame.to_csv("train.tsv", index=False, sep="\t")
    frame.to_csv("train.csv.gz", index=False)
    frame.to_parquet("train.parquet")
    frame.to_json("train.json", orient="records")
    frame.to_json("train.jsonl", orient="records", lines=True)
    Dataset.from_list(ROWS).save_to_disk("saved")
    return tmp_path


def splits(stratify=True, seed=1, **fields):
    return load_splits(DataSection(**fields), seed=seed, stratify=stratify)


def from_objects(train, validation=None, test=None, stratify=True, **fields):
    return splits_from_objects(train, validation, test, DataSection(**fields), seed=1, stratify=stratify)


def write(name, *lines):
    with open(name, "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")


def classes(labels, names=("a", "b")):
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"text": [str(at) for at in range(len(labels))], "label": labels}, features=features)


@pytest.mark.parametrize(
    "name", ["train.csv", "train.tsv", "train.csv.gz", "train.parquet", "train.json", "train.jsonl", "saved"]
)
def test_every_format_gives_the_same_splits(folder, name):
    result = splits(train=name, test=name)
    assert result.notes == ("validation: 10 % of train cut off (4 of 40 rows), stratified by label, seed 1",)
    assert result.train.column_names == ["text", "label"]
    assert sorted(result.validation["label"]) == ["a", "a", "b", "b"]
    assert {*result.train["text"], *result.validation["text"]} == {row["text"] for row in ROWS}
    assert len(result.train) == 36
    assert result.test["text"][:] == [row["text"] for row in ROWS]
    assert result.train["text"][:] == splits(train="train.csv").train["text"][:]


def test_text_that_looks_like_something_else_stays_text(folder):
    write("train.csv", "text,label", "NA,1", "null,2", "1,1", "1e5,2", '"",1', "007,2")
    result = splits(train="train.csv", validation="train.csv")
    assert result.train["text"][:] == ["NA", "null", "1", "1e5", "", "007"]
    assert result.notes == ()


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "2.5", "-3e2"], [1.0, 2.5, -300.0]),
        (["01", "02", "03"], ["01", "02", "03"]),
        (["1", "2", "NA"], ["1", "2", "NA"]),
        (["nan", "1", "2"], ["nan", "1", "2"]),
        (["9" * 30, "1", "2"], [float("9" * 30), 1.0, 2.0]),
    ],
)
def test_labels_of_a_csv_become_numbers_if_all_are(folder, cells, labels):
    write("a.csv", "text,label", *[f"x,{cell}" for cell in cells])
    assert load_file("a.csv", where="here", section=DataSection())["label"][:] == labels
    assert load_file("a.csv", where="here")["label"][:] == cells


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["text,label", '"a', 'b",x', "c,"], r"data.train \(bad.csv\), line 4: an empty label"),
        (["text,label", "a,x", "", "b\0,y"], r"data.train \(bad.csv\), line 4: a NUL byte in column 'text'"),
        (["text,labels", "a,x"], r"no column 'label'; there are 'text', 'labels'; did you mean 'labels'\?"),
        (["text;label", "a;x"], r"no column 'text'; there are 'text;label'"),
        (["text,label"], r"data.train \(bad.csv\): no rows"),
        (["text,label", "a,x", "b,x"], "every row has the label 'x'"),
    ],
)
def test_bad_files_are_named_with_their_line(folder, lines, message):
    write("bad.csv", *lines)
    with pytest.raises(DataError, match=message):
        splits(train="bad.csv")


def test_a_missing_label_in_json_lines_is_named_with_its_line(folder):
    write("bad.jsonl", '{"text": "a", "label": 1}', "", '{"text": "b"}')
    with pytest.raises(DataError, match=r"data.test \(bad.jsonl\), line 3: no label"):
        splits(train="train.csv", test="bad.jsonl")


def test_a_missing_file_is_guessed(folder):
    with pytest.raises(DataError, match=r"data.train \(trian.csv\): no such file; did you mean 'train.csv'\?"):
        splits(train="trian.csv")
    with pytest.raises(DataError, match="no such file; check the path"):
        load_file("nowhere/at/all.csv", where="predict")


def test_a_file_for_prediction_needs_no_label(folder):
    write("texts.csv", "text,other", "one,1", "two,2")
    assert load_file("texts.csv", where="predict", section=DataSection()).to_dict() == {"text": ["one", "two"]}
    assert load_file("texts.csv", where="predict").column_names == ["text", "other"]
    with pytest.raises(DataError, match="no column 'label'"):
        load_file("texts.csv", where="predict", section=DataSection(), labelled=True)


def test_a_saved_dict_brings_its_splits(folder):
    part = Dataset.from_list(ROWS)
    DatasetDict(train=part, validation=part.select([1, 2]), test=part.select([3]), odd=part).save_to_disk("all")
    for fields in ({"train": "all"}, {"name": "all"}):
        result = splits(**fields)
        assert [len(split) for split in (result.train, result.validation, result.test)] == [40, 2, 1]
        assert result.notes == ()
    assert len(splits(train="all", validation="train.csv").validation) == 40
    assert len(splits(name="all", splits="train,odd").validation) == 40
    with pytest.raises(DataError, match=r"no split 'dev'; there are 'train', .*name them in data.splits"):
        splits(name="all", splits="train,dev")
    with pytest.raises(DataError, match="holds several splits; name one of them: all/train"):
        load_file("all", where="here")
    assert len(load_file("all/test", where="here")) == 1


def test_a_split_that_is_not_named_is_left_out(folder):
    part = Dataset.from_list(ROWS)
    DatasetDict(train=part, validation=part.select([1, 2]), test=part.select([3])).save_to_disk("all")
    alone = splits(name="all", splits="train")
    assert (len(alone.train) + len(alone.validation), alone.test) == (40, None)
    cut = splits(name="all", splits="train,,validation")
    assert (len(cut.train) + len(cut.validation), len(cut.test)) == (40, 2)


def test_a_folder_with_an_at_is_no_revision(folder):
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk("all@v2")
    assert len(splits(name="all@v2").train) == 36


@pytest.mark.parametrize("name", ["@v2", "owner/name@", "@"])
def test_a_name_or_revision_must_not_be_empty(folder, name):
    with pytest.raises(DataError, match=r"data.name: '.*' is not a folder, a Hub id or a Hub id with @revision"):
        splits(name=name)


def test_a_folder_that_is_no_dataset_is_an_error(folder):
    (folder / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"data.train \(saved\): not a readable datasets folder"):
        splits(train="saved")


def test_hub_failures_are_one_line(folder):
    with pytest.raises(DataError, match=r"data.name \(nobody/nothing@abc\): the dataset cannot be loaded") as caught:
        splits(name="nobody/nothing@abc")
    assert "\n" not in str(caught.value)


def test_the_hub_gets_name_config_and_revision(folder, monkeypatch):
    calls = []

    def stand_in(*arguments, **options):
        calls.append((arguments, options))
        return DatasetDict(train=classes([0, 1] * 10), test=classes([-1, -1]))

    monkeypatch.setattr(load, "load_dataset", stand_in)
    result = splits(name="owner/name@abc", config="cfg")
    assert calls == [(("owner/name", "cfg"), {"revision": "abc"})]
    assert result.test is None
    assert result.notes[0] == "test: left out, its labels are not public (all are -1)"
    assert result.train.features["label"].names == ["a", "b"]
    assert len(splits(name="owner/name", test="train.csv").test) == 40


def test_name_and_train_exclude_each_other(folder):
    with pytest.raises(DataError, match="both train and name"):
        splits(train="train.csv", name="owner/name")
    with pytest.raises(DataError, match="no training data"):
        splits()


def test_a_test_file_alone_is_no_training_data(folder):
    with pytest.raises(DataError, match="no training data"):
        splits(test="train.csv")


@pytest.mark.parametrize("make", [Dataset.from_list, pd.DataFrame, list])
def test_objects_of_every_kind_give_the_same_splits(make):
    result = from_objects(make(ROWS), test=make(ROWS[:3]))
    assert result.train.column_names == ["text", "label"]
    assert (len(result.train), len(result.validation), len(result.test)) == (36, 4, 3)
    whole = from_objects(DatasetDict(train=Dataset.from_list(ROWS), validation=Dataset.from_list(ROWS[:4])))
    assert (len(whole.train), len(whole.validation), whole.test) == (40, 4, None)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": "x"}],
            "train, row 2: column 'label' is text, but a number",
        ),
        ([{"text": "a", "label": 1}, "b"], "train, row 2: str where a dict is wanted"),
        ([{"text": "a"}], r"train: no column 'label'; there are 'text'"),
        ([], "no column 'text'"),
        (pd.DataFrame({"text": ["a", "b"], "label": [1, float("nan")]}), "train, row 2: no label"),
        (pd.DataFrame({"text": ["a", None], "label": ["x", "y"]}), "train, row 2: no text"),
        (pd.DataFrame({"text": ["a", "b"], "label": pd.array([1, pd.NA], "Int64")}), "train, row 2: no label"),
        (pd.DataFrame([["a", "b", 1]], columns=["text", "text", "label"]), "two columns have the name 'text'"),
        (pd.DataFrame({"text": ["a"]}), "no column 'label'"),
        ("train.csv", "train: data of type str"),
    ],
)
def test_bad_objects_are_named_with_their_row(train, message):
    with pytest.raises(DataError, match=message):
        from_objects(train)


def test_a_dict_in_the_place_of_a_split_is_an_error():
    with pytest.raises(DataError, match="validation: a DatasetDict"):
        from_objects(ROWS, DatasetDict(train=Dataset.from_list(ROWS)))


def test_a_frame_keeps_integers_lists_and_categories():
    frame = pd.DataFrame({"text": pd.Categorical(["a", "b"]), "label": [[0, 1], []], "group": [1, 2]})
    result = from_objects(frame, frame, stratify=False)
    assert result.train["label"][:] == [[0, 1], []]
    integers = from_objects(frame.assign(label=[3, 4]), frame.assign(label=[3, 4]))
    assert integers.train.features["label"] == Value("int64")


def test_groups_land_in_one_split():
    rows = [row | {"author": f"author {row['extra'] // 4}"} for row in ROWS]
    result = from_objects(rows, group="author", validation_fraction=0.2)
    assert not set(result.train["author"]) & set(result.validation["author"])
    assert result.notes == (
        "validation: 20 % of train cut off (8 of 40 rows), as near to stratified by label as possible, "
        "no author in both, seed 1",
    )
    with pytest.raises(DataError, match="test, row 1: a value of 'author' that train has, too"):
        from_objects(rows, test=rows[:1], group="author")


def test_regression_is_cut_at_random():
    rows = [row | {"label": row["extra"] / 7} for row in ROWS]
    for stratify in (True, False):
        notes = from_objects(rows, stratify=stratify).notes
        assert notes == ("validation: 10 % of train cut off (4 of 40 rows), random, seed 1",)
    constant = [row | {"label": 1.5} for row in ROWS]
    assert len(from_objects(constant, stratify=False).validation) == 4


def test_lists_of_labels_are_cut_near_to_stratified():
    rows = [row | {"label": ["a", "b"][: row["extra"] % 3]} for row in ROWS]
    assert "as near to stratified by label as possible" in from_objects(rows).notes[0]


def test_training_data_can_be_limited():
    rows = [*ROWS, {"text": "rare", "label": "c"}]
    result = from_objects(rows, max_train_examples=10)
    assert len(result.train) == 10
    assert set(result.train["label"]) == {"a", "b", "c"}
    assert result.notes[1] == "train: a random 10 of 37 rows, seed 1"
    # The validation rows do not depend on the limit, so runs with different limits compare.
    assert result.validation["text"][:] == from_objects(rows).validation["text"][:]
    assert len(from_objects(ROWS, max_train_examples=100).notes) == 1


def test_label_types_are_made_one(folder):
    write("a.csv", "text,label", "x,1", "y,2", "z,many")
    write("b.csv", "text,label", "x,1", "y,2")
    write("c.csv", "text,label", "x,0.5", "y,2")
    result = splits(train="a.csv", validation="b.csv")
    assert result.validation["label"][:] == ["1", "2"]
    assert result.notes == ("validation: labels read as string, as in the other splits",)
    assert splits(train="b.csv", validation="c.csv", stratify=False).train["label"][:] == [1.0, 2.0]
    named = from_objects(classes([0, 1]), [{"text": "x", "label": "b"}])
    assert named.validation["label"][:] == [1]


def test_label_types_that_do_not_fit_are_an_error():
    with pytest.raises(DataError, match="number the classes of 'label' differently"):
        from_objects(classes([0, 1]), classes([0, 1], names=("b", "a")))
    lists = [Features({"text": Value("string"), "label": List(ClassLabel(names=names))}) for names in ("ab", "ba")]
    train, validation = [Dataset.from_dict({"text": ["x"], "label": [[0]]}, features=each) for each in lists]
    with pytest.raises(DataError, match="number the classes"):
        from_objects(train, validation)
    with pytest.raises(DataError, match="validation: labels are"):
        from_objects(ROWS, [{"text": "x", "label": ["a"]}])
    with pytest.raises(DataError, match="validation: labels are"):
        from_objects(classes([0, 1]), [{"text": "x", "label": "unheard of"}])


def test_classes_that_train_lacks_are_named_with_their_line(folder):
    write("test.csv", "text,label", "x,a", "y,z")
    with pytest.raises(DataError, match=r"data.test \(test.csv\): .* 'z' \(line 3\).*known labels are 'a', 'b'"):
        splits(train="train.csv", test="test.csv")
    # A class that the feature declares is known, though no training row has it.
    declared = from_objects(classes([0, 1], names="abc"), classes([2], names="abc"))
    assert declared.validation["label"][:] == [2]


def test_a_dataset_that_is_set_to_give_arrays_is_set_back():
    result = from_objects(Dataset.from_list(ROWS).with_format("numpy", columns=["label"]))
    assert isinstance(result.train["text"][0], str)
    assert result.train.format["type"] is None


def test_json_with_a_data_key(folder):
    (folder / "a.json").write_text(json.dumps({"version": "1.1", "data": ROWS}))
    assert len(splits(train="a.json").train) == 36


def test_labels_that_train_does_not_have_are_named_with_their_line(folder):
    write("test.csv", "text,label", "x,a", "", "y,c")
    with pytest.raises(DataError, match=r"data.test \(test.csv\): .* 'c' \(line 4\); .*known labels are 'a', 'b'"):
        splits(train="train.csv", test="test.csv")
    lists = [{"text": "x", "label": ["a"]}, {"text": "y", "label": ["a", "b"]}]
    with pytest.raises(DataError, match=r"validation: .* 'z' \(row 2\)"):
        from_objects(lists, [lists[0], {"text": "z", "label": ["a", "z"]}])
    # A class that the data set declares is known even without a training example.
    assert len(from_objects(classes([0, 1], names="abc"), classes([2], names="abc")).validation) == 1


def test_lists_in_parquet_and_json_are_the_same_labels(folder):
    rows = [{"text": f"text {at}", "label": ["a", "b", "c"][: at % 4]} for at in range(40)]
    pd.DataFrame(rows).to_parquet("lists.parquet")
    (folder / "lists.json").write_text(json.dumps(rows))
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = [splits(train=f"lists.{ending}").train["label"][:] for ending in ("parquet", "json", "jsonl")]
    assert labels[0] == labels[1] == labels[2]
    assert {tuple(row) for row in labels[0]} == {(), ("a",), ("a", "b"), ("a", "b", "c")}


def test_pairs_keep_both_texts(folder):
    write("pairs.tsv", "first\tsecond\tid\tscore", "one\t1\tx\t0.5", "two\tNA\ty\t4", "three\tnull\tz\t5")
    fields = {"train": "pairs.tsv", "text": "first", "label": "score"}
    result = splits(**fields, validation="pairs.tsv", text_pair="second", stratify=False)
    assert result.train.to_dict() == {
        "first": ["one", "two", "three"],
        "second": ["1", "NA", "null"],
        "score": [0.5, 4.0, 5.0],
    }
    with pytest.raises(DataError, match=r"no column 'secnd'; .* did you mean 'second'\?"):
        splits(**fields, text_pair="secnd", stratify=False)


def test_numbers_are_no_text(folder):
    pd.DataFrame({"text": [1, 2], "label": ["a", "b"]}).to_parquet("numbers.parquet")
    with pytest.raises(DataError, match=r"data.train \(numbers.parquet\): column 'text' holds int64, not text"):
        splits(train="numbers.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,x\nb,y,z\n", "line 3: 3 cells where the header has 2"),
        (b"text,label\na,x\ncaf\xe9,y\n", "line 3: byte 4 of the line is 0xe9, which is not UTF-8"),
    ],
)
def test_a_damaged_file_is_named_with_its_field_and_line(folder, content, message):
    (folder / "bad.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        splits(train="train.csv", validation="bad.csv")
    assert str(caught.value).startswith(f"data.validation (bad.csv), {message}")
    assert "\n" not in str(caught.value)


def test_the_format_of_a_dataset_is_dropped():
    dataset = classes([0, 1] * 10)
    dataset.set_format("numpy", columns=["label"])
    assert from_objects(dataset).train[0].keys() == {"text", "label"}


def test_the_seed_decides_which_rows_are_cut(folder):
    cuts = [tuple(splits(train="train.csv", seed=seed).validation["text"]) for seed in (1, 2, 1)]
    assert cuts[0] == cuts[2] != cuts[1]
