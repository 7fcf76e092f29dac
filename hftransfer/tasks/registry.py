"""From a task's settings, or a trained model, to the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from hftransfer.errors import CheckpointError
from hftransfer.recipe import DataSection, TaskSection, TaskSettings
from hftransfer.tasks.base import Task
from hftransfer.tasks.causal_lm import CausalLMTask
from hftransfer.tasks.masked_lm import MaskedLMTask
from hftransfer.tasks.multiple_choice import MultipleChoiceTask
from hftransfer.tasks.question_answering import QuestionAnsweringTask
from hftransfer.tasks.seq2seq import Seq2SeqTask
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.tasks.token_classification import TokenClassificationTask

if TYPE_CHECKING:
    from datasets import Dataset

TASKS: dict[str, type[Task]] = {
    task.type: task
    for task in (
        TextClassificationTask,
        TokenClassificationTask,
        QuestionAnsweringTask,
        MultipleChoiceTask,
        Seq2SeqTask,
        MaskedLMTask,
        CausalLMTask,
    )
}

SAVED_SETTINGS = "hftransfer_task"
"""Entry of a trained model's config with the settings of its task."""


def build_task(settings: TaskSection, data: DataSection, train: Dataset) -> Task:
    """The task that settings and training examples define.

    Raises:
        DataError: If the examples leave nothing to learn.
        RecipeError: If a setting means nothing for this problem.
    """
    return TASKS[settings.type].from_data(settings, data, train)  # type: ignore[attr-defined]


def saved_settings(settings: TaskSection) -> dict[str, Any]:
    """What the config of a trained model keeps of its task's settings."""
    return {SAVED_SETTINGS: settings.model_dump(mode="json", exclude_none=True)}


def settings_of_model(config: Any, model_class: str) -> TaskSection:
    """The settings of the task that a model was trained for.

    Args:
        config: The model's config.
        model_class: Name of its class, which tells the task of a model that something else has trained.

    Raises:
        CheckpointError: If no task trains such a model.
    """
    by_class = [task.type for task in TASKS.values() if model_class.endswith(task.architectures)]
    if not by_class:
        raise CheckpointError(
            f"no task is known for a {model_class}", where="model", fix=f"there are {', '.join(TASKS)}"
        )
    adapter: TypeAdapter[TaskSection] = TypeAdapter(TaskSettings)
    saved = getattr(config, SAVED_SETTINGS, None) or {}
    # A checkpoint that was trained on for another task still says what it was before.
    if isinstance(saved, dict) and saved.get("type") in by_class:
        try:
            return adapter.validate_python(saved)
        except ValidationError as error:
            raise CheckpointError(
                f"{SAVED_SETTINGS} is not understood ({error.errors()[0]['msg']})",
                where="config.json",
                fix="it was saved by another version of hftransfer",
            ) from error
    return adapter.validate_python({"type": by_class[0]})


def task_of_model(settings: TaskSection, data: DataSection, config: Any) -> Task:
    """The task of a trained model, with these settings, reading these columns."""
    return TASKS[settings.type].from_model(settings, data, config)  # type: ignore[attr-defined]
