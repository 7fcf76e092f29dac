"""What can be known to be wrong with a recipe before any library is loaded for it: files, columns, folders, names.

All of this is refused later as well; here it costs a fraction of a second and no torch.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hftransfer.data.augment import check_remedies
from hftransfer.data.named import check_exists, check_present, dataset_and_revision, needed_columns, replay_section
from hftransfer.data.readers import file_format, stream_tables
from hftransfer.data.squad_file import rows_of
from hftransfer.errors import CheckpointError, DataError, RecipeError
from hftransfer.recipe import Recipe
from hftransfer.run import check_output_folder
from hftransfer.setting_values import listed_columns, name_and_revision
from hftransfer.tasks.metric_names import METRICS, did_you_mean

ACCELERATE = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb", "all")
TRACKERS = (*ACCELERATE, "codecarbon")
"""What Accelerate's log_with takes, and what measures emissions."""
SCANNED_BYTES = 8 << 20
"""JSON files up to this size are searched for columns, which any of their records may have."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
STREAMED_TASK = "text_classification"


def check_inputs(recipe: Recipe, *, needs_data: bool = True) -> None:
    """Refuse what cannot be trained.

    Args:
        recipe: The recipe.
        needs_data: Whether it must name training data; a recipe of one's own may have them in memory.

    Raises:
        UserError: A file, column, folder, checkpoint or name that is not there, or settings that exclude each other.
    """
    _check_settings(recipe)
    _check_checkpoint(recipe.checkpoint)
    if recipe.output_dir is not None:
        check_output_folder(recipe)
    if needs_data and recipe.data.name is None and recipe.data.train is None:
        raise DataError("no training data", where="data", fix="set data.train to a file or data.name to a dataset")
    _check_data(recipe)


def _check_settings(recipe: Recipe) -> None:
    """Names that nothing bears, and settings that need another one."""
    for tracker in recipe.trackers:
        if tracker not in TRACKERS:
            raise RecipeError(f"no tracker {tracker!r}", where="trackers", fix=did_you_mean(tracker, TRACKERS))
    metric, known = recipe.evaluation.metric, _metrics(recipe)
    if metric is not None and metric not in known and not metric.startswith("f1/"):
        what = f"no metric {metric!r} for {recipe.task.type}"
        raise RecipeError(what, where="evaluation.metric", fix=did_you_mean(metric, known))
    if recipe.task.type == "question_answering" and recipe.data.text_pair is None:
        raise RecipeError("no column with the context", where="data.text_pair", fix="name it; text is the question")
    if recipe.task.type == "multiple_choice" and not listed_columns(recipe.data.text_pair):
        raise RecipeError("no column with the choices", where="data.text_pair", fix="name it, or one for each choice")
    check_remedies(recipe)
    if not recipe.data.streaming:
        return
    if recipe.task.type != STREAMED_TASK:
        what = "only the data of text classification can be streamed"
        raise DataError(what, where="data.streaming", fix="set --data.streaming false")
    refused = {name: getattr(recipe.data, name) for name in ("max_train_examples", "group", "replay")}
    for name in (name for name, value in refused.items() if value is not None):
        raise DataError("needs all rows at once", where=f"data.{name}", fix="leave it out, or --data.streaming false")


def _metrics(recipe: Recipe) -> tuple[str, ...]:
    """The metrics that a task may have, whatever its data turn out to be."""
    problem = getattr(recipe.task, "problem", None)
    problems: tuple[str, ...] = {
        "text_classification": ("single_label", "multi_label", "regression") if problem == "auto" else (str(problem),),
        "token_classification": ("entities", "tags"),
        "seq2seq": ("generation",),
        "causal_lm": ("causal_lm", "generation"),
    }.get(recipe.task.type, (recipe.task.type,))
    return tuple(dict.fromkeys(itertools.chain.from_iterable(METRICS[name] for name in problems)))


def _check_checkpoint(checkpoint: str) -> None:
    """A folder must be there and hold a model; whether the Hub has one is found out later."""
    try:
        path = Path(checkpoint)
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise CheckpointError("no config.json in this folder", where=checkpoint, fix="check --checkpoint")
            return
        if path.is_file():
            raise CheckpointError("is a file, not a folder", where=checkpoint, fix="name the folder that it is in")
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no usable name ({error})", where="checkpoint", fix="give a folder or a Hub id"
        ) from None
    if not checkpoint.strip():
        raise CheckpointError("the name is empty", where="checkpoint", fix="give a folder or a Hub id")
    if checkpoint.startswith((".", "/", "~")) or name_and_revision(checkpoint)[0].count("/") > 1:
        raise CheckpointError("no such folder", where=checkpoint, fix="check --checkpoint")
    if not HUB_ID.fullmatch(checkpoint):
        raise CheckpointError("neither a folder nor a Hub id", where=checkpoint, fix="check --checkpoint")


def _check_data(recipe: Recipe) -> None:
    """Every named file is there, can be read, and has the columns."""
    data = recipe.data
    if data.name is not None and data.train is not None:
        raise DataError("both train and name are given", where="data", fix="give files or a dataset's name")
    if data.name is not None:
        dataset_and_revision(data)
    for name in ("train", "validation", "test", "replay"):
        path, section = getattr(data, name), replay_section(data) if name == "replay" else data
        wanted = needed_columns(section, recipe.task)
        if path is None:
            continue
        where = f"data.{name}"
        file, place = check_exists(path, where), f"{where} ({path})"
        if file.is_dir():
            if not any((file / known).is_file() for known in ("dataset_dict.json", "state.json")):
                raise DataError("a folder, but not one of datasets", where=place, fix="write it with save_to_disk")
            continue
        if not os.access(file, os.R_OK):
            raise DataError("may not be read", where=place, fix="check the file's permissions")
        columns = _columns(file, place)
        if columns is not None:
            check_present(columns, wanted, place)


def _columns(file: Path, place: str) -> Sequence[str] | None:
    """The columns of a file; None where they cannot be told from its beginning.

    Raises:
        DataError: It cannot be read.
    """
    ending = file_format(file, place)
    if ending in (".json", ".jsonl"):
        return None if file.stat().st_size > SCANNED_BYTES or file.suffix.lower() != ending else _keys(file)
    return list(next(stream_tables(file, place, None, 1)).column_names)


def _keys(file: Path) -> list[str] | None:
    """The keys of all records of a JSON file; None where it is malformed, which is told with its line later."""
    try:
        records: list[Any] = list(_records(file))
    except (ValueError, RecursionError, TypeError, KeyError, DataError):
        return None
    if not records or not all(isinstance(record, dict) for record in records):
        return None
    return list(dict.fromkeys(key for record in records for key in record))


def _records(file: Path) -> Iterator[Any]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix.lower() == ".jsonl":
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
        return
    content = json.loads(text)
    records = content["data"] if isinstance(content, dict) else content
    yield from rows_of(records, str(file))
