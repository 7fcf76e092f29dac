"""Every strategy on every family's language model: frozen stays frozen, the rest learns, stock transformers loads it.

The strategies that train the head alone are refused where the head is the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from hftransfer import make_strategy
from hftransfer.caching.states import call_model, model_inputs
from hftransfer.errors import StrategyError
from hftransfer.inference import TrainedModel
from hftransfer.models.load import LoadedModel, load_model
from hftransfer.models.save import save_model
from hftransfer.recipe import DataSection, Recipe
from hftransfer.strategies.registry import STRATEGIES
from hftransfer.tasks.base import Task
from hftransfer.tasks.registry import TASKS as TASK_CLASSES
from hftransfer.tasks.registry import build_task, saved_settings
from tests.contract.stages import copied, train_all_stages
from tests.tiny_models import LANGUAGE_MODELS, WORDS

SETTINGS: dict[str, dict[str, Any]] = {"top_layers": {"k": 1}, "gradual_unfreezing": {"stages": 3}, "lora": {"r": 2}}
TASKS = {"seq2seq": "AutoModelForSeq2SeqLM", "masked_lm": "AutoModelForMaskedLM", "causal_lm": "AutoModelForCausalLM"}
TASK_SETTINGS: dict[str, dict[str, Any]] = {"seq2seq": {"max_new_tokens": 32}}
PAIRS = [(task, family) for task, auto_class in TASKS.items() for family in LANGUAGE_MODELS[auto_class]]
CASES = [(task, family, strategy) for task, family in [*PAIRS, ("masked_lm", "t5")] for strategy in STRATEGIES]
ADAPTERS = ("lora", "ia3")
NO_BIASES = ("t5", "llama", "modernbert")
ROWS = Dataset.from_dict(
    {
        "text": [" ".join(WORDS[index : index + 4 + index]) for index in range(4)],
        "label": [" ".join(WORDS[9 - index : 12]) for index in range(4)],
    }
)


@cache
def read(task: str, family: str, language_models: Path) -> LoadedModel:
    """A family's model, read once for all strategies, which get copies."""
    auto_class = TASK_CLASSES[task].class_for(family)
    return load_model(str(language_models / family / auto_class), auto_class, config_overrides={}, seed=1)


def load(task: str, family: str, language_models: Path) -> tuple[Task, LoadedModel]:
    loaded = copied(read(task, family, language_models))
    assert loaded.fresh_parameters == ()
    built = build_task(
        Recipe(checkpoint="m", task={"type": task, **TASK_SETTINGS.get(task, {})}).task, DataSection(), ROWS
    )
    built.attach(loaded.model, loaded.tokenizer)
    return built, loaded


def save(task: Task, model: Any, loaded: LoadedModel, folder: Path) -> None:
    """Write a trained model as a run does."""
    config = {**task.saved_config(), **saved_settings(task.settings)}
    save_model(model, loaded.tokenizer, folder, checkpoint="somewhere", revision=None, config=config)


def is_refused(strategy: str, family: str, loaded: LoadedModel) -> bool:
    headless = not loaded.anatomy.head_parameters
    if strategy == "contrastive":
        return True
    return (strategy == "bitfit" and family in NO_BIASES) or (headless and strategy in ("feature_extraction", "lp_ft"))


def loss_of(task: Task, loaded: LoadedModel) -> Callable[[Any], torch.Tensor]:
    """The loss of a model on all rows, with other draws at every call."""
    features = task.encode(ROWS, loaded.tokenizer, 32, training=True)
    rows, steps = np.arange(len(features)), count()

    def loss(model: Any) -> torch.Tensor:
        step = next(steps)
        batch = task.collate(features, rows, step)
        outputs = call_model(task, model, batch, "__call__", {})
        return task.loss(outputs, batch) / task.weight(features, rows, step)

    return loss


@pytest.mark.parametrize(("task", "family", "name"), CASES)
def test_strategy_on_language_model(task: str, family: str, name: str, language_models: Path, tmp_path: Path) -> None:
    built, loaded = load(task, family, language_models)
    strategy = make_strategy(name, **SETTINGS.get(name, {}))
    if is_refused(name, family, loaded):
        with pytest.raises(StrategyError):
            strategy.apply(loaded.model, loaded.anatomy)
        return
    torch.manual_seed(0)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    train_all_stages(strategy, model, loaded, loss_of(built, loaded))
    model = strategy.finish(model).eval()
    folder = tmp_path / "model"
    save(built, model, loaded, folder)
    stock = getattr(transformers, TASK_CLASSES[task].class_for(family)).from_pretrained(folder).eval()
    features = built.encode(ROWS, loaded.tokenizer, 32)
    inputs = model_inputs(built.collate(features, np.arange(len(features))))
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(stock(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    # What we load ourselves goes through PEFT where there is an adapter, and knows its task.
    again = TrainedModel.load(folder, built.data)
    assert (again.task.type, again.settings, again.task.saved_config()) == (task, built.settings, built.saved_config())
    assert hasattr(again.loaded.model, "peft_config") == hasattr(model, "peft_config") == (name in ADAPTERS)
    with torch.no_grad():
        torch.testing.assert_close(again.loaded.model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("task", list(TASKS))
def test_merging_leaves_a_plain_model(name: str, task: str, language_models: Path, tmp_path: Path) -> None:
    built, loaded = load(task, LANGUAGE_MODELS[TASKS[task]][0], language_models)
    strategy = make_strategy(name, merge=True)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    train_all_stages(strategy, model, loaded, loss_of(built, loaded))
    features = built.encode(ROWS, loaded.tokenizer, 32)
    inputs = model_inputs(built.collate(features, np.arange(len(features))))
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        merged: Any = strategy.finish(model)
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    save(built, merged, loaded, tmp_path / "model")
    assert not (tmp_path / "model" / "adapter_config.json").exists()
