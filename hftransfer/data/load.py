"""Load the splits that a recipe's data section names, from files, saved folders, the Hub or memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from hftransfer.data.check import (
    check_columns,
    check_groups_apart,
    check_several_classes,
    column_of,
    has_no_labels,
    typed_labels,
)
from hftransfer.data.kinds import class_values, is_list
from hftransfer.data.named import (
    USUAL_TASK,
    check_duplicates,
    check_exists,
    check_present,
    dataset_and_revision,
    needed_columns,
    replay_section,
)
from hftransfer.data.parts import Part, check_classes, one_label_type
from hftransfer.data.readers import DELIMITERS, file_format, read_table, row_locator
from hftransfer.data.records import row_number, table_from_records
from hftransfer.data.replay import mix
from hftransfer.data.saved import check_saved
from hftransfer.data.split import LabelCodes, choose_subset, cut_validation, encode_labels, encode_values
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, TaskSection

DataSource: TypeAlias = Dataset | DatasetDict | pd.DataFrame | list[dict[str, Any]]


@dataclass(frozen=True)
class Splits:
    """The data of one training.

    Attributes:
        train: Training examples.
        validation: Examples that choose the best checkpoint.
        test: Examples that are scored once, at the end.
        notes: What was decided and has to be said, such as "validation: 10 % of train cut off (69 of 690 rows), seed
            13".
        stream: Where the training examples are when they are streamed; `train` then holds the first of them.
    """

    train: Dataset
    validation: Dataset
    test: Dataset | None
    notes: tuple[str, ...]
    stream: Any = None


def load_splits(section: DataSection, *, seed: int, stratify: bool, task: TaskSection = USUAL_TASK) -> Splits:
    """Load, check and complete the splits of a recipe.

    Args:
        section: The data section.
        seed: Decides which rows go to validation, and which stay when `max_train_examples` is set.
        stratify: Whether labels are classes (or lists of classes), whose shares a cut keeps; fractional labels never
            are.
        task: Says which columns are needed and what they may hold.

    Returns:
        The splits with the section's columns alone.

    Raises:
        DataError: There is no training data, or the data cannot be found, read or used.
    """
    if section.name is not None and section.train is not None:
        raise DataError("both train and name are given", where="data", fix="give files or a dataset's name")
    parts = _named_parts(section, task) if section.name is not None else file_parts(section, task)
    return complete(parts, section, seed, stratify, task)


def splits_from_objects(
    train: DataSource | None,
    validation: DataSource | None,
    test: DataSource | None,
    section: DataSection,
    *,
    seed: int,
    stratify: bool,
    task: TaskSection = USUAL_TASK,
) -> Splits:
    """As `load_splits`, from data in memory.

    Args:
        train: Training data; a DatasetDict brings its other splits along, where those arguments are None.
        validation: Validation data.
        test: Test data.
        section: The data section; only its columns, split names and fractions are read.
        seed: As in `load_splits`.
        stratify: As in `load_splits`.
        task: As in `load_splits`.

    Raises:
        DataError: There is no training data, or the data cannot be used.
    """
    parts = _dict_parts(train, section, "data") if isinstance(train, DatasetDict) else {}
    wanted = needed_columns(section, task)
    for name, source in (("train", train), ("validation", validation), ("test", test)):
        if source is not None and not isinstance(source, DatasetDict):
            parts[name] = Part(dataset_from(source, name, wanted), name)
        elif source is not None and name != "train":
            raise DataError("a DatasetDict where one split is wanted", where=name, fix="pick one of its splits")
    return complete(parts, section, seed, stratify, task)


def load_file(
    path: str,
    *,
    where: str,
    section: DataSection | None = None,
    labelled: bool = False,
    task: TaskSection = USUAL_TASK,
) -> Dataset:
    """Read one file or saved folder.

    Args:
        path: A csv, tsv, json, jsonl or parquet file (text formats also as .gz, .bz2 or .xz), or a folder from
            `save_to_disk`.
        where: What the path was given as, such as "data.train"; starts error messages.
        section: Keeps and checks this section's columns alone. Without it all columns come back unchecked.
        labelled: Whether the section's label and group columns must be there.
        task: Says which columns are needed and what they may hold.

    Returns:
        The rows. Cells of csv and tsv files are strings, except that a label column of nothing but numbers becomes
        numeric.

    Raises:
        DataError: The file cannot be found, read or used; the message names the line or row.
    """
    part = _read_part(path, where, section, labelled, task)
    if section is None:
        return part.dataset
    check_columns(part.dataset, section, part.where, labelled=labelled, locate=part.locate, task=task)
    kept = needed_columns(section, task)
    return part.dataset.select_columns([name for name in part.dataset.column_names if name in kept])


def _read_part(path: str, where: str, section: DataSection | None, labelled: bool, task: TaskSection) -> Part:
    file, place = check_exists(path, where), f"{where} ({path})"
    if file.is_dir():
        return Part(_saved_split(file, place), place)
    return Part(Dataset(_read_typed(file, place, section, labelled, task)), place, row_locator(file))


def _read_typed(file: Path, place: str, section: DataSection | None, labelled: bool, task: TaskSection) -> pa.Table:
    if section is None:
        return read_table(file, place)
    table = read_table(file, place, needed_columns(section, task))
    wanted = needed_columns(section, task, labelled=labelled)
    if not set(wanted) <= set(table.column_names):
        # Read once more with all columns, because the message lists them.
        check_present(read_table(file, place).column_names, wanted, place)
    if file_format(file, place) in DELIMITERS and section.label in table.column_names:
        position = table.column_names.index(section.label)
        if section.label not in task.input_columns(section):
            table = table.set_column(position, section.label, typed_labels(table.column(position)))
    return table


def _saved(folder: Path, place: str) -> Dataset | DatasetDict:
    check_saved(folder, place)
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder makes of the library's reader
        raise DataError(
            f"not a readable datasets folder: {error.__cause__ or error}", where=place, fix="write it with save_to_disk"
        ) from error


def _saved_split(folder: Path, place: str) -> Dataset:
    saved = _saved(folder, place)
    if isinstance(saved, DatasetDict):
        raise DataError(
            "the folder holds several splits",
            where=place,
            fix=f"name one of them: {', '.join(str(folder / n) for n in saved)}",
        )
    return saved


def file_parts(section: DataSection, task: TaskSection = USUAL_TASK) -> dict[str, Part]:
    """The splits that a section names by files."""
    parts: dict[str, Part] = {}
    for name, path in (("train", section.train), ("validation", section.validation), ("test", section.test)):
        if path is None:
            continue
        where, file = f"data.{name}", Path(path)
        if name == "train" and (file / "dataset_dict.json").is_file():
            parts |= _dict_parts(_saved(file, f"{where} ({path})"), section, f"{where} ({path})")
        else:
            parts[name] = _read_part(path, where, section, True, task)
    return parts


def _named_parts(section: DataSection, task: TaskSection) -> dict[str, Part]:
    name, revision = dataset_and_revision(section)
    place = f"data.name ({section.name})"
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded = _saved(folder, place)
    else:
        try:
            loaded = load_dataset(name, section.config, revision=revision)
        except Exception as error:  # no common base: connection, missing dataset, wrong configuration, damaged files
            raise DataError(
                f"the dataset cannot be loaded: {error.__cause__ or error}",
                where=place,
                fix="check name, @revision, config and the connection to the Hub, or give local files in data.train",
            ) from error
    if isinstance(loaded, Dataset):
        loaded = {section.split_names["train"]: loaded}
    return _dict_parts(loaded, section, place) | file_parts(section, task)


def _dict_parts(loaded: Any, section: DataSection, place: str) -> dict[str, Part]:
    """The wanted splits of a DatasetDict. Only validation and test under their default names may be absent."""
    parts = {}
    for name, split in section.split_names.items():
        if split in loaded:
            parts[name] = Part(loaded[split], f"{place}, split {split}")
        elif name == "train" or split != name:
            raise DataError(
                f"no split {split!r}; there are {', '.join(map(repr, loaded))}",
                where=place,
                fix="name them in data.splits",
            )
    return parts


def dataset_from(source: Any, where: str, columns: list[str]) -> Dataset:
    """Data in memory as a Dataset.

    Args:
        source: Dataset, DataFrame or list of dicts.
        where: Start of error messages.
        columns: The columns to keep; of a Dataset all stay.

    Raises:
        DataError: It is of another type, or a column is missing or mixes types.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, pd.DataFrame):
        names = [str(name) for name in source.columns]
        check_duplicates(names, where)
        check_present(names, columns, where)
        frame = source.set_axis(names, axis=1)[columns].astype(object)
        rows = frame.where(frame.notna(), None).itertuples(index=False, name=None)
        return Dataset(table_from_records((dict(zip(columns, row, strict=True)) for row in rows), where, columns))
    if isinstance(source, list):
        for row, record in enumerate(source):
            if not isinstance(record, Mapping):
                raise DataError(f"{type(record).__name__} where a dict is wanted", where=f"{where}, {row_number(row)}")
        check_present(
            list(dict.fromkeys(name for record in source for name in record)), columns if source else [], where
        )
        return Dataset(table_from_records(source, where, columns))
    raise DataError(
        f"data of type {type(source).__name__}",
        where=where,
        fix="give a Dataset, DatasetDict, DataFrame or list of dicts",
    )


def complete(
    parts: dict[str, Part], section: DataSection, seed: int, stratify: bool, task: TaskSection = USUAL_TASK
) -> Splits:
    """Check the splits, cut off what is missing and keep the columns that are needed."""
    notes: list[str] = []
    if "train" not in parts:
        raise DataError("no training data", where="data", fix="set data.train to a file or data.name to a dataset")
    if "test" in parts and has_no_labels(parts["test"].dataset, section.label):
        notes.append("test: left out, its labels are not public (all are -1)")
        del parts["test"]
    if section.replay is not None:
        parts = {**parts, "replay": _read_part(section.replay, "data.replay", replay_section(section), True, task)}
    for name, part in parts.items():
        own = replay_section(section) if name == "replay" else section
        check_columns(part.dataset, own, part.where, locate=part.locate, task=task)
        # A format such as "torch" would hide columns and turn labels into tensors.
        kept = needed_columns(own, task)
        parts[name] = replace(part, dataset=part.dataset.with_format(None).select_columns(kept))
    for label in task.label_columns(section):
        parts = one_label_type(parts, label, notes)
    replayed = parts.pop("replay", None)
    if section.group is not None:
        # Validation data choose weights and thresholds, so the test data must be apart from them as well.
        for first, second in combinations(("train", "validation", "test"), 2):
            if first in parts and second in parts:
                part, other = parts[second], parts[first].dataset
                check_groups_apart(other, part.dataset, section.group, name=first, where=part.where, locate=part.locate)
    datasets = {name: part.dataset for name, part in parts.items()}
    if stratify:
        check_several_classes(datasets["train"], section, parts["train"].where)
        check_classes(parts, section)
    if "validation" not in parts:
        datasets |= _cut(datasets["train"], section, seed, stratify, notes)
    train = _limit(datasets["train"], section, seed, stratify, notes)
    if replayed is not None:
        train = mix(train, replayed, section, seed, stratify, notes)
    return Splits(train, datasets["validation"], datasets.get("test"), tuple(notes))


def _label_codes(dataset: Dataset, label: str, stratify: bool) -> LabelCodes | None:
    if not stratify:
        return None
    values = class_values(column_of(dataset, label))
    return None if values is None else encode_labels(values)


def _cut(train: Dataset, section: DataSection, seed: int, stratify: bool, notes: list[str]) -> dict[str, Dataset]:
    labels = _label_codes(train, section.label, stratify)
    groups = None if section.group is None else encode_values(column_of(train, section.group))[0]
    kept, cut = cut_validation(len(train), section.validation_fraction, seed, labels=labels, groups=groups)
    how = "random" if labels is None else f"stratified by {section.label}"
    if labels is not None and (groups is not None or is_list(column_of(train, section.label).type)):
        how = f"as near to stratified by {section.label} as possible"
    if groups is not None:
        how += f", no {section.group} in both"
    share = f"{section.validation_fraction * 100:g} %"
    notes.append(f"validation: {share} of train cut off ({len(cut):,} of {len(train):,} rows), {how}, seed {seed}")
    return {"train": train.select(kept), "validation": train.select(cut)}


def _limit(train: Dataset, section: DataSection, seed: int, stratify: bool, notes: list[str]) -> Dataset:
    limit = section.max_train_examples
    if limit is None or limit >= len(train):
        return train
    notes.append(f"train: a random {limit:,} of {len(train):,} rows, seed {seed}")
    return train.select(choose_subset(len(train), limit, seed, _label_codes(train, section.label, stratify)))
