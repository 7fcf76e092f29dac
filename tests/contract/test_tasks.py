"""Every strategy for every task on every family: what learns learns, the rest does not, stock transformers loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset

from hftransfer import make_strategy
from hftransfer.caching.states import model_inputs
from hftransfer.errors import CheckpointError, StrategyError
from hftransfer.inference import TrainedModel
from hftransfer.models.load import LoadedModel, load_model
from hftransfer.models.save import save_model
from hftransfer.recipe import DataSection, Recipe
from hftransfer.strategies.registry import STRATEGIES
from hftransfer.tasks.base import Task
from hftransfer.tasks.registry import TASKS, build_task, saved_settings
from hftransfer.training.contrastive import PairInputs, PairLoss
from hftransfer.training.head_fit import fit_head
from hftransfer.training.prepare import load_pretrained
from scripts.write_task_matrix import PAGE, SETTINGS, SHOWN, no_model, page_text, refusal
from tests.contract.stages import copied, train_all_stages
from tests.tiny_models import FAMILIES

TEXTS = ["the film was great", "a boring book", "we liked the music very much .", "sad"]
# Columns of each task with four examples; those of language models are in test_language_models.py.
EXAMPLES: dict[str, tuple[dict[str, str], dict[str, list[Any]]]] = {
    "text_classification": ({}, {"text": TEXTS, "label": ["no", "perhaps", "yes", "no"]}),
    "token_classification": (
        {},
        {
            "text": [text.split() for text in TEXTS],
            "label": [["O", "B-a", "I-a", "O", "B-a", "O", "B-b"][: len(text.split())] for text in TEXTS],
        },
    ),
    "question_answering": (
        {"text_pair": "context"},
        {
            "text": ["what", "who was it", "is it", "why"],
            "context": TEXTS,
            "label": [
                {"text": ["film"], "answer_start": [4]},
                {"text": ["boring book"], "answer_start": [2]},
                {"text": [], "answer_start": []},
                {"text": ["sad"], "answer_start": [0]},
            ],
        },
    ),
    "multiple_choice": (
        {"text_pair": "choices"},
        {
            "text": TEXTS,
            "choices": [["good", "bad"], ["a", "the dog", "it"], ["cat", "we"], ["I", "he"]],
            "label": [0, 2, 1, 1],
        },
    ),
}
# Every choice is scored by the same output, every token of a context likewise.
WITHOUT_GRADIENT = {"multiple_choice": ("classifier.bias",), "question_answering": ("qa_outputs.bias",)}
MORE_FAMILIES = [("text_classification", family) for family in FAMILIES if family not in SHOWN]
CASES = [
    (task, family, strategy)
    for task, family in [*((task, family) for task in EXAMPLES for family in SHOWN), *MORE_FAMILIES]
    if no_model(task, family) is None
    for strategy in STRATEGIES
]


def first_output(outputs: Any) -> torch.Tensor:
    return outputs.start_logits if "start_logits" in outputs else outputs.logits


def build(name: str) -> tuple[Task, Dataset]:
    """A task and its examples."""
    columns, examples = EXAMPLES.get(name, ({}, {"text": TEXTS, "label": TEXTS}))
    rows = Dataset.from_dict(examples)
    return build_task(Recipe(checkpoint="m", task=name).task, DataSection(**columns), rows), rows


@pytest.fixture(scope="module")
def load(checkpoints: Path) -> Callable[[str, str], LoadedModel]:
    """A copy of a family's model for a task, which is read once for all strategies."""
    read: dict[tuple[str, str], LoadedModel] = {}

    def loaded(name: str, family: str) -> LoadedModel:
        if (name, family) not in read:
            task, _ = build(name)
            overrides = task.config_overrides()
            read[name, family] = load_model(
                str(checkpoints / family), task.auto_class, config_overrides=overrides, seed=1
            )
        return copied(read[name, family])

    return loaded


@pytest.mark.parametrize(("name", "family", "strategy_name"), CASES)
def test_strategy_trains_task_on_family(
    name: str, family: str, strategy_name: str, load: Callable[[str, str], LoadedModel], tmp_path: Path
) -> None:
    (task, rows), loaded = build(name), load(name, family)
    settings, data = Recipe(checkpoint="m", task=name).task, DataSection(**EXAMPLES[name][0])
    task.attach(loaded.model, loaded.tokenizer)
    strategy = make_strategy(strategy_name, **SETTINGS.get(strategy_name, {}))
    if refusal(name, family, strategy_name) is not None:
        with pytest.raises(StrategyError):
            strategy.apply(loaded.model, loaded.anatomy)
        return
    features = task.encode(rows, loaded.tokenizer, 32, training=True)
    batch = task.collate(features, np.arange(len(features)), seed=1)
    torch.manual_seed(0)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    idle = ("key.bias", "key_proj.bias", *WITHOUT_GRADIENT.get(name, ()))

    def pair_inputs(model: Any) -> PairInputs:
        return PairInputs(task, features, Accelerator(), model)

    objectives = {
        "pairs": lambda model: PairLoss().loss(pair_inputs(model).run(model, batch), batch),
        "fit": lambda model: fit_head(model, task, features, len(task.config_overrides()["id2label"])),
    }
    learned = train_all_stages(
        strategy, model, loaded, lambda model: task.loss(model(**model_inputs(batch)), batch), idle, objectives
    )
    plain = {key.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for key in learned}
    assert set(loaded.anatomy.head_parameters) <= plain
    model = strategy.finish(model).eval()
    folder = tmp_path / "model"
    config = {**task.saved_config(), **saved_settings(settings)}
    save_model(model, loaded.tokenizer, folder, checkpoint="somewhere", revision=None, config=config)
    stock = getattr(transformers, task.auto_class).from_pretrained(folder).eval()
    with torch.no_grad():
        expected = first_output(model(**model_inputs(batch)))
        torch.testing.assert_close(first_output(stock(**model_inputs(batch))), expected, atol=1e-5, rtol=1e-4)
    for key, value in task.config_overrides().get("id2label", {}).items():
        assert stock.config.id2label[key] == value
    # What we load ourselves goes through PEFT where there is an adapter, and knows its task.
    again = TrainedModel.load(folder, data)
    assert (again.task.type, again.settings) == (name, settings)
    assert hasattr(again.loaded.model, "peft_config") == hasattr(model, "peft_config")
    with torch.no_grad():
        found = first_output(again.loaded.model(**model_inputs(batch)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", list(TASKS))
def test_families_without_a_model_are_refused_in_one_line_for_the_reason_in_the_docs(
    name: str, checkpoints: Path
) -> None:
    task, _ = build(name)
    for family in SHOWN:
        if (reason := no_model(name, family)) is not None:
            recipe = Recipe(checkpoint=str(checkpoints / family), task=name)
            with pytest.raises(CheckpointError) as refused:
                load_pretrained(recipe, task, "no")
            assert refused.value.what == reason
            assert refusal(name, family, "full_fine_tuning") == reason
            assert reason in page_text()


@pytest.mark.parametrize(
    ("name", "family", "reason"),
    [
        ("causal_lm", "bert", "bert models cannot do causal_lm: an encoder sees the words"),
        ("causal_lm", "bart", "bart models cannot do causal_lm: their decoder"),
        ("masked_lm", "bart", "bart models cannot do masked_lm: they were pretrained to write a whole text anew"),
        ("masked_lm", "gpt2", "gpt2 models cannot do masked_lm: a decoder does not see"),
        ("multiple_choice", "t5", "transformers has no AutoModelForMultipleChoice for t5"),
    ],
)
def test_a_class_in_transformers_is_never_said_to_be_missing(name: str, family: str, reason: str) -> None:
    """There are BertLMHeadModel, BartForCausalLM and BartForConditionalGeneration; they do not suit the task."""
    assert (no_model(name, family) or "").startswith(reason)


def test_the_table_in_the_docs_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run python -m scripts.write_task_matrix"
