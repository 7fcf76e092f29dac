"""Predict and evaluate with a trained model folder, batched and length-sorted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import torch

from hftransfer.caching.states import PlainInputs
from hftransfer.data.check import check_columns
from hftransfer.data.load import dataset_from, load_file
from hftransfer.data.named import check_exists
from hftransfer.errors import DataError
from hftransfer.models.load import LoadedModel, load_trained, max_input_length
from hftransfer.recipe import DataSection, TaskSection
from hftransfer.run_files import MODEL_FOLDER
from hftransfer.safety.files import check_output_file, replacing
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.base import Features, Predictions, Task
from hftransfer.tasks.registry import settings_of_model, task_of_model
from hftransfer.training import evaluate as evaluation
from hftransfer.training.prepare import describe_truncation

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_MAX_LENGTH = 512
OUTPUT_FORMATS = (".csv", ".jsonl", ".parquet")
WHOLE_NUMBERS = {
    getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")()
    for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
}


def predict(
    model: str | os.PathLike[str],
    texts: list[str] | list[list[str]] | None = None,
    *,
    data: Any = None,
    text: str = "text",
    text_pair: str | None = None,
    batch_size: int = 256,
    base: str | None = None,
) -> list[dict[str, Any]]:
    """What a trained model predicts, in the words of its task.

    Args:
        model: A run, its folder or its model folder.
        texts: The texts (for a tagger also lists of words), or
        data: a Dataset, DataFrame or list of dicts with the columns that the task reads.
        text: The data's text column.
        text_pair: Its column with the second text of a pair.
        batch_size: Most rows per batch.
        base: The checkpoint below an adapter whose folder holds no weights of the whole model.

    Returns:
        One record per example (docs/tasks.md): `prediction`, and `probabilities` by label name for classes.

    Raises:
        CheckpointError: If the folder is not a trained model.
        DataError: If the texts are no texts, or the data lack a column.
    """
    from datasets import Dataset as HfDataset

    if (texts is None) == (data is None):
        raise DataError("give either texts or data", where="predict")
    # A Series or an array, too.
    rows: list[Any] | None = None if texts is None else list(texts)
    alike = any(all(isinstance(one, kind) for one in rows or ()) for kind in (str, list))
    if isinstance(texts, str) or not alike:
        raise DataError("the texts are not a list of strings, or of lists of words", where="predict")
    _check_batch_size(batch_size)
    trained = TrainedModel.load(model, DataSection(text=text, text_pair=text_pair), base)
    columns = list(trained.settings.input_columns(trained.data))
    source = HfDataset.from_dict({text: rows}) if rows is not None else data
    if not len(source):
        return []
    dataset = dataset_from(source, "predict", columns)
    check_columns(dataset, trained.data, "predict", labelled=False, task=trained.settings)
    # Predictions must not depend on a label column that happens to be there.
    return trained.predict(dataset.with_format(None).select_columns(columns), batch_size)


def evaluate(
    model: str | os.PathLike[str],
    data: DataSection,
    *,
    batch_size: int = 256,
    base: str | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Scores of a trained model on `data.test`.

    Args:
        model: A run, its folder or its model folder.
        data: The file and its columns.
        batch_size: Most rows per batch.
        base: As in `predict`.
        say: Is told what the model's longest input cuts off, if anything.

    Raises:
        DataError: If the data cannot be read or have labels that the model does not know.
        CheckpointError: If the folder is not a trained model.
    """
    if data.test is None:
        raise DataError("no data to evaluate on", where="data.test", fix="give a file with --data.test")
    _check_batch_size(batch_size)
    check_exists(data.test, "data.test")
    trained = TrainedModel.load(model, data, base)
    dataset = load_file(data.test, where="data.test", section=data, labelled=True, task=trained.settings)
    features = trained.encode(dataset)
    if say is not None:
        for line in describe_truncation({"test": features}, trained.max_length):
            say(line)
    return trained.task.score(trained.run(features, batch_size), features)


def predict_file(
    model: str | os.PathLike[str],
    source: str,
    output: Path,
    *,
    text: str,
    text_pair: str | None,
    batch_size: int,
    base: str | None = None,
) -> int:
    """Predict for a file and write its columns with the predictions; the output is whole or absent.

    Args:
        model: A run, its folder or its model folder.
        source: File to read.
        output: File to write.
        text: Column with the text.
        text_pair: Column with the second text of a pair.
        batch_size: Most rows per batch.
        base: As in `predict`.

    Returns:
        The number of rows.

    Raises:
        DataError: If the input cannot be read or the output's format is unknown.
    """
    check_output_file(output, OUTPUT_FORMATS)
    check_exists(source, "--input")
    _check_batch_size(batch_size)
    trained = TrainedModel.load(model, DataSection(text=text, text_pair=text_pair), base)
    load_file(source, where="--input", section=trained.data, task=trained.settings)
    dataset = load_file(source, where="--input")
    inputs = dataset.select_columns(list(trained.settings.input_columns(trained.data)))
    # What predictions are called is known from one of them.
    for part in (inputs.select(range(min(1, len(inputs)))), inputs):
        records = trained.predict(part, batch_size)
        added = _columns(records, flat=output.suffix == ".csv")
        taken = [name for name in added if name in dataset.column_names]
        if taken:
            raise DataError(f"has a column {taken[0]!r} already", where=f"--input ({source})", fix="rename it")
    # A column of whole numbers stays one where some are missing: pandas would round large ones.
    frame: Any = dataset.with_format("arrow")[:].to_pandas(types_mapper=WHOLE_NUMBERS.get)
    _write(frame.assign(**{name: _series(values) for name, values in added.items()}), output)
    return len(records)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"{batch_size} rows are no batch", where="batch_size", fix="give at least 1")


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained for a task, and the columns that it reads.

    Attributes:
        loaded: Model and tokenizer.
        settings: The settings of its task.
        data: The columns.
        task: The task.
    """

    loaded: LoadedModel
    settings: TaskSection
    data: DataSection
    task: Task

    @classmethod
    def load(cls, model: str | os.PathLike[str], data: DataSection, base: str | None = None) -> TrainedModel:
        """Load a run, its folder or its model folder; its config says what it was trained for.

        Args:
            model: The run or folder.
            data: The columns.
            base: The checkpoint below an adapter that is alone.

        Raises:
            CheckpointError: If the folder is not a trained model.
        """
        folder = Path(model)
        loaded = load_trained(folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder, base=base)
        if torch.accelerator.is_available():
            model_module: torch.nn.Module = loaded.model
            model_module.to(torch.accelerator.current_accelerator())
        inner = transformers_model(loaded.model)
        settings = settings_of_model(inner.config, type(inner).__name__)
        task = task_of_model(settings, data, inner.config)
        task.attach(inner, loaded.tokenizer)
        return cls(loaded, settings, data, task)

    def encode(self, dataset: Dataset) -> Features:
        """Tokenize examples as in the training."""
        return self.task.encode(dataset, self.loaded.tokenizer, self.max_length)

    def run(self, features: Features, batch_size: int) -> Predictions:
        """The model's predictions by row."""
        return evaluation.predict(
            self.loaded.model, self.task, PlainInputs(self.task, features), max_examples=batch_size
        )

    def predict(self, dataset: Dataset, batch_size: int) -> list[dict[str, Any]]:
        """One record per example."""
        features = self.encode(dataset)
        return self.task.decode(self.run(features, batch_size), features)

    @property
    def max_length(self) -> int:
        """The longest input that the training allowed, else the model's limit."""
        trained = getattr(self.loaded.model.config, "hftransfer_max_length", None)
        base = transformers_model(self.loaded.model)
        return int(trained or max_input_length(base, self.loaded.tokenizer) or DEFAULT_MAX_LENGTH)


def _columns(records: list[dict[str, Any]], *, flat: bool) -> dict[str, list[Any]]:
    """Predictions as columns; flat ones have a column per label, and what else is no single value as JSON."""
    columns = {name: [record[name] for record in records] for name in records[0]}
    if not flat:
        return columns
    cells: dict[str, list[Any]] = {}
    for name, values in columns.items():
        if name == "probabilities" and isinstance(values[0], dict):
            cells |= {f"probability_{label}": [value[label] for value in values] for label in values[0]}
        elif any(isinstance(value, list | dict) for value in values):
            cells[name] = [json.dumps(value, ensure_ascii=False) for value in values]
        else:
            cells[name] = values
    return cells


def _series(values: list[Any]) -> Any:
    """A column; one of whole numbers stays one where some are missing, which pandas would make fractions of."""
    if None in values and all(value is None or type(value) is int for value in values):
        return pd.array(values, dtype="Int64")
    return values


def _write(frame: Any, output: Path) -> None:
    """Write a table beside its destination and rename."""
    with replacing(output) as temporary:
        if output.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        elif output.suffix == ".jsonl":
            frame.to_json(temporary, orient="records", lines=True, force_ascii=False, date_format="iso")
        else:
            frame.to_parquet(temporary, index=False)
