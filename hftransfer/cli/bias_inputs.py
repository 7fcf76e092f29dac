"""What `hftransfer diagnose bias` reads: a run or data, a model, groups, terms, cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftransfer.errors import CheckpointError, DataError, RecipeError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.run import Run
from hftransfer.safety.files import check_output_file
from hftransfer.setting_values import listed_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from hftransfer.diagnose.bias import Rows, Subject
    from hftransfer.inference import TrainedModel

TASK = TextClassification()
DATA_SEED = 13


def check_bias_inputs(
    run: Path | None, data: DataSection, model: Path | None, cases: str | None, output: Path | None
) -> None:
    """Refuse what cannot be diagnosed, before anything heavy is loaded.

    Raises:
        UserError: Nothing to look at, files that are not there, or settings that exclude each other.
    """
    from hftransfer.data.named import check_exists

    if run is None and data.train is None and data.name is None and data.test is None:
        raise DataError("nothing to look at", where="diagnose bias", fix="name a run's folder, or give --data.train")
    if run is not None and model is not None:
        raise DataError("both a run and a model", where="--model", fix="a run has its own model: leave it out")
    if run is not None:
        Run(run).check_finished()
    if cases is not None and run is None and model is None:
        raise DataError("cases need a model", where="--cases", fix="give --model, or name a run's folder")
    for path, where in ((data.train, "data.train"), (data.validation, "data.validation"), (data.test, "data.test")):
        if path is not None:
            check_exists(path, where)
    if cases is not None:
        check_exists(cases, "--cases")
    if data.streaming:
        raise DataError("needs all rows at once", where="data.streaming", fix="leave it out")
    if output is not None:
        check_output_file(output, (".html",))


def read_subject(
    run: Path | None,
    data: DataSection,
    model: Path | None,
    *,
    groups: str | None,
    positive: str | None,
    terms: str,
    cases: str | None,
    positive_case: str | None,
    batch_size: int,
    seed: int,
) -> tuple[Subject, str]:
    """Load data, model, terms and cases.

    Args:
        run: A run's folder.
        data: The examples, or what replaces those of the run.
        model: A model's folder.
        groups: Columns with groups.
        positive: Positive labels.
        terms: Term list.
        cases: Functional suite.
        positive_case: Its positive label.
        batch_size: Most rows per batch.
        seed: Of everything that is drawn.

    Returns:
        What to diagnose, and what to call it.

    Raises:
        UserError: Something cannot be read or does not fit together.
    """
    from hftransfer.data.terms import load_terms
    from hftransfer.diagnose.bias import Subject
    from hftransfer.diagnose.cases import load_cases

    axes = load_terms(terms, "--terms")
    task, split_seed = TASK, DATA_SEED
    if run is not None:
        data, task, split_seed = _of_run(run, data)
    if groups is not None:
        data = data.model_copy(update={"sensitive": groups})
    parts = _splits(data, task, split_seed)
    trained = None if run is None and model is None else _trained(run or model, data)
    names = _names(trained, next(iter(parts.values())), data)
    rows = {name: _rows(part, data, task, names, name) for name, part in parts.items()}
    chosen = _positive(positive, names, rows)
    suite = None if cases is None else load_cases(cases, chosen, positive_case)
    if suite is not None and data.text_pair is not None:
        raise DataError("cases are single texts, the model reads pairs", where="--cases", fix="leave them out")
    logits = None if trained is None else _logits(trained, data, batch_size)
    about = str(run or data.train or data.test or data.name)
    return Subject(names, chosen, rows, seed, logits, axes, suite), about


def _of_run(run: Path, data: DataSection) -> tuple[DataSection, TextClassification, int]:
    """The data section of a run, with what the command line says in its place, its task and the seed of its splits."""
    recipe = Run(run).recipe
    if not isinstance(recipe.task, TextClassification) or recipe.task.problem != "single_label":
        what = f"a run of {recipe.task.type}, {getattr(recipe.task, 'problem', '')}".rstrip(", ")
        raise RecipeError(what, where=str(run), fix="bias is diagnosed for single-label text classification")
    given = {name: getattr(data, name) for name in data.model_fields_set}
    if recipe.data.streaming:
        raise DataError("the run's data were streamed", where=str(run), fix="give --model and a part of the data")
    return recipe.data.model_copy(update=given), recipe.task, recipe.seed


def _splits(data: DataSection, task: TextClassification, seed: int) -> dict[str, Dataset]:
    """The splits that there are; without training data the test data alone."""
    from hftransfer.data.load import load_file, load_splits

    if data.train is None and data.name is None:
        if data.test is None:
            what = "the run's data were in memory, and are gone"
            raise DataError(what, where="data", fix="give them as files: --data.train, --data.validation, --data.test")
        found = {"test": load_file(data.test, where="data.test", section=data, labelled=True, task=task)}
        if data.validation is not None:
            where = "data.validation"
            found["validation"] = load_file(data.validation, where=where, section=data, labelled=True, task=task)
        return found
    splits = load_splits(data, seed=seed, stratify=True, task=task)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: part for name, part in parts.items() if part is not None}


def _trained(folder: Path | None, data: DataSection) -> TrainedModel:
    from hftransfer.inference import TrainedModel
    from hftransfer.tasks.text_classification import TextClassificationTask

    assert folder is not None
    trained = TrainedModel.load(folder, data)
    task = trained.task
    if not isinstance(task, TextClassificationTask) or task.labels.problem != "single_label":
        raise CheckpointError(
            "not a single-label classifier", where=str(folder), fix="bias is diagnosed for those alone"
        )
    return trained


def _names(trained: TrainedModel | None, dataset: Dataset, data: DataSection) -> list[str]:
    """The names of the classes: the model's, else those of the data."""
    from hftransfer.tasks.labels import infer_labels

    if trained is not None:
        return list(trained.task.labels.names)  # type: ignore[attr-defined]
    labels = infer_labels(dataset, data.label, "auto", "data")
    if labels.problem != "single_label":
        raise DataError(
            f"the labels are {labels.problem.replace('_', ' ')}",
            where=f"column {data.label!r}",
            fix="bias is diagnosed for single labels",
        )
    return list(labels.names)


def _rows(dataset: Dataset, data: DataSection, task: TextClassification, names: Sequence[str], split: str) -> Rows:
    from hftransfer.diagnose.bias import Rows
    from hftransfer.tasks.balance import BETWEEN, group_name
    from hftransfer.tasks.labels import Labels, column_names

    columns = [dataset[name][:] for name in task.input_columns(data)]
    where = f"{split}, column {data.label!r}"
    labels_N = Labels("single_label", tuple(names)).encode(column_names(dataset, data.label), where)
    sensitive = listed_columns(data.sensitive)
    groups = {name: [group_name(value) for value in dataset[name][:]] for name in sensitive}
    if len(sensitive) > 1:
        groups[BETWEEN.join(sensitive)] = [BETWEEN.join(row) for row in zip(*groups.values(), strict=True)]
    return Rows(columns, labels_N, groups)


def _positive(given: str | None, names: Sequence[str], rows: dict[str, Rows]) -> list[str]:
    """The labels that count as a positive decision."""
    if given is not None:
        chosen = listed_columns(given)
        unknown = next((name for name in chosen if name not in names), None)
        if unknown is not None or not 0 < len(set(chosen)) < len(names):
            what = f"no label {unknown!r}" if unknown is not None else "some of the labels, not all or none"
            raise DataError(what, where="--positive", fix=f"the labels are {', '.join(names)}")
        return chosen
    if len(names) == 2:
        return [names[1]]
    counts: Counter[Any] = Counter(next(iter(rows.values())).labels_N.tolist())
    return [names[min(range(len(names)), key=lambda code: counts[code])]]


def _logits(trained: TrainedModel, data: DataSection, batch_size: int) -> Any:
    """The model as a function of texts."""
    from datasets import Dataset

    inputs = list(trained.settings.input_columns(data))

    def logits(columns: list[list[str]]) -> Any:
        dataset = Dataset.from_dict(dict(zip(inputs, columns, strict=True)))
        features = trained.encode(dataset)
        return trained.task.by_example(trained.run(features, batch_size), features)  # type: ignore[attr-defined]

    return logits
