"""The splits of a data set on their way in: where each comes from, and labels of one type in all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from hftransfer.data.check import check_labels_known, column_of
from hftransfer.data.kinds import class_values, is_list
from hftransfer.data.records import Locate, row_number
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection


@dataclass(frozen=True)
class Part:
    """A split on its way in: the data and how to say where a row of it is."""

    dataset: Dataset
    where: str
    locate: Locate = row_number


def check_classes(parts: dict[str, Part], section: DataSection) -> None:
    """Raise a DataError if a split has a class that train neither has nor declares."""
    train = parts["train"].dataset
    column = class_values(column_of(train, section.label))
    if column is None:
        return
    values = pc.list_flatten(column.combine_chunks()) if is_list(column.type) else column
    if pa.types.is_floating(values.type):
        return
    names = _class_names(train.features[section.label])
    known = pc.unique(values).to_pylist() if names is None else range(len(names))
    for name in (name for name in parts if name != "train"):
        part = parts[name]
        check_labels_known(part.dataset, section, known, where=part.where, locate=part.locate)


def one_label_type(parts: dict[str, Part], label: str, notes: list[str]) -> dict[str, Part]:
    """Give the label column one type in all splits; a type of its own would make other labels of the same values."""
    features = {name: part.dataset.features[label] for name, part in parts.items()}
    names = [known for known in map(_class_names, features.values()) if known is not None]
    if any(known != names[0] for known in names):
        raise DataError(
            f"the splits number the classes of {label!r} differently", where="data", fix="store the labels as strings"
        )
    target = _common_feature(list(features.values()))
    result = dict(parts)
    for name, feature in features.items():
        if feature == target:
            continue
        try:
            result[name] = replace(parts[name], dataset=parts[name].dataset.cast_column(label, target))
        except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise DataError(
                f"labels are {feature}, but {target} elsewhere ({error})",
                where=parts[name].where,
                fix="store the labels of all splits in one type",
            ) from error
        notes.append(f"{name}: labels read as {getattr(target, 'dtype', target)}, as in the other splits")
    return result


def _class_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def _common_feature(features: list[Any]) -> Any:
    for feature in features:
        if isinstance(feature, ClassLabel):
            return feature
    kinds = [str(getattr(feature, "dtype", "")) for feature in features]
    if all(isinstance(feature, Value) for feature in features) and len(set(kinds)) > 1:
        if any("string" in kind for kind in kinds):
            return Value("string")
        return Value("float64" if any("float" in kind for kind in kinds) else "int64")
    return features[0]
