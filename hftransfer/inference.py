"""Predict and evaluate with a trained model folder, batched and length-sorted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftransfer.caching.states import PlainInputs
from hftransfer.data.load import load_file
from hftransfer.errors import DataError
from hftransfer.models.load import LoadedModel, load_trained, max_input_length
from hftransfer.recipe import DataSection
from hftransfer.run import MODEL_FOLDER
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training import evaluate as evaluation

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_MAX_LENGTH = 512
OUTPUT_FORMATS = (".csv", ".jsonl", ".parquet")


def predict(
    model: str | os.PathLike[str],
    texts: list[str] | None = None,
    *,
    data: Dataset | None = None,
    text: str = "text",
    text_pair: str | None = None,
    batch_size: int = 256,
) -> list[dict[str, Any]]:
    """Label names and probabilities for texts.

    Args:
        model: A run, its folder or its model folder.
        texts: The texts, or
        data: a dataset with a text column.
        text: The dataset's text column.
        text_pair: Its column with the second text of a pair.
        batch_size: Most rows per batch.

    Returns:
        One record per text: `prediction`, and `probabilities` by label name for classes.

    Raises:
        CheckpointError: If the folder is not a trained model.
        DataError: If the texts are no texts, or the dataset lacks a column.
    """
    from datasets import Dataset as HfDataset

    if (texts is None) == (data is None):
        raise DataError("give either texts or data", where="predict")
    if isinstance(texts, str) or not all(isinstance(one, str) for one in texts or ()):
        raise DataError("the texts are not a list of strings", where="predict")
    dataset = HfDataset.from_dict({text: list(texts)}) if texts is not None else data
    assert dataset is not None
    for column in (text, text_pair):
        if column is not None and column not in dataset.column_names:
            there = ", ".join(dataset.column_names)
            raise DataError(f"no column {column!r}", where="predict", fix=f"there are {there}")
    # Predictions must not depend on a label column that happens to be there.
    section = DataSection(text=text, text_pair=text_pair, label="no label is read")
    loaded, task = _load(model, section)
    features = task.encode(dataset, loaded.tokenizer, _max_length(loaded))
    if not len(features):
        return []
    predictions_NP = evaluation.predict(loaded.model, task, PlainInputs(task, features), max_examples=batch_size)
    return task.decode(predictions_NP, features)


def evaluate(model: str | os.PathLike[str], data: DataSection, *, batch_size: int = 256) -> dict[str, float]:
    """Scores of a trained model on `data.test`.

    Args:
        model: A run, its folder or its model folder.
        data: The file and its columns.
        batch_size: Most rows per batch.

    Raises:
        DataError: If the data cannot be read or have labels that the model does not know.
        CheckpointError: If the folder is not a trained model.
    """
    if data.test is None:
        raise DataError("no data to evaluate on", where="data.test", fix="give a file with --data.test")
    dataset = load_file(data.test, where="data.test", section=data, labelled=True)
    loaded, task = _load(model, data)
    features = task.encode(dataset, loaded.tokenizer, _max_length(loaded))
    return task.score(
        evaluation.predict(loaded.model, task, PlainInputs(task, features), max_examples=batch_size), features
    )


def predict_file(
    model: str | os.PathLike[str], source: str, output: Path, *, text: str, text_pair: str | None, batch_size: int
) -> int:
    """Predict for a file and write its columns with the predictions; the output is whole or absent.

    Args:
        model: A run, its folder or its model folder.
        source: File to read.
        output: File to write.
        text: Column with the text.
        text_pair: Column with the second text of a pair.
        batch_size: Most rows per batch.

    Returns:
        The number of rows.

    Raises:
        DataError: If the input cannot be read or the output's format is unknown.
    """
    check_output_file(output, OUTPUT_FORMATS)
    section = DataSection(text=text, text_pair=text_pair)
    load_file(source, where="--input", section=section)
    dataset = load_file(source, where="--input")
    records = predict(model, data=dataset, text=text, text_pair=text_pair, batch_size=batch_size)
    added = _columns(records, flat=output.suffix == ".csv")
    taken = [name for name in added if name in dataset.column_names]
    if taken:
        raise DataError(f"has a column {taken[0]!r} already", where=f"--input ({source})", fix="rename it")
    _write(dataset.to_pandas().assign(**added), output)
    return len(records)


def check_output_file(output: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before anything heavy is done.

    Raises:
        DataError: If its ending is not among the suffixes, its folder is absent or it is a folder.
    """
    if output.suffix not in suffixes:
        raise DataError(f"cannot write {output.suffix!r} files", where=str(output), fix=f"use {', '.join(suffixes)}")
    if not output.parent.is_dir():
        raise DataError("no such folder", where=str(output.parent), fix="make it first")
    if output.is_dir():
        raise DataError("is a folder", where=str(output), fix="name a file")


def _columns(records: list[dict[str, Any]], *, flat: bool) -> dict[str, list[Any]]:
    """Predictions as columns; flat ones have a column per label, and lists of labels as JSON."""
    predictions = [record["prediction"] for record in records]
    if "probabilities" not in records[0]:
        return {"prediction": predictions}
    probabilities = [record["probabilities"] for record in records]
    if not flat:
        return {"prediction": predictions, "probabilities": probabilities}
    if isinstance(predictions[0], list):
        predictions = [json.dumps(names, ensure_ascii=False) for names in predictions]
    by_label = {f"probability_{name}": [record[name] for record in probabilities] for name in probabilities[0]}
    return {"prediction": predictions, **by_label}


def _load(model: str | os.PathLike[str], section: DataSection) -> tuple[LoadedModel, TextClassificationTask]:
    """The model and the task that its config describes."""
    folder = Path(model)
    loaded = load_trained(folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder)
    if torch.accelerator.is_available():
        model_module: torch.nn.Module = loaded.model
        model_module.to(torch.accelerator.current_accelerator())
    return loaded, TextClassificationTask.from_model(loaded.model.config, section)


def _max_length(loaded: LoadedModel) -> int:
    """The longest input that the training allowed, else the model's limit."""
    trained = getattr(loaded.model.config, "hftransfer_max_length", None)
    base = transformers_model(loaded.model)
    return int(trained or max_input_length(base, loaded.tokenizer) or DEFAULT_MAX_LENGTH)


def _write(frame: Any, output: Path) -> None:
    """Write a table beside its destination and rename."""
    temporary = output.with_name(f".{output.name}.writing")
    if output.suffix == ".csv":
        frame.to_csv(temporary, index=False)
    elif output.suffix == ".jsonl":
        frame.to_json(temporary, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(temporary, index=False)
    os.replace(temporary, output)
