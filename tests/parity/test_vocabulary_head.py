"""Logits at the places with a label alone: the same loss, gradients and predictions as those of all places."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM

from hftransfer import make_strategy
from hftransfer.caching.states import call_model, model_inputs
from hftransfer.models.load import LoadedModel, load_model
from hftransfer.models.vocabulary_head import logits_at, logits_only_at
from hftransfer.recipe import DataSection, Recipe
from hftransfer.tasks.base import Task
from hftransfer.tasks.registry import TASKS, build_task
from tests.tiny_models import LANGUAGE_MODELS, WORDS

AUTO_CLASSES = {task: TASKS[task].auto_class for task in ("masked_lm", "seq2seq", "causal_lm")}
PAIRS = [(task, family) for task, name in AUTO_CLASSES.items() for family in LANGUAGE_MODELS[name]]
ROWS = Dataset.from_dict(
    {
        "text": [" ".join(WORDS[index : index + 4 + 3 * index]) for index in range(5)],
        "label": [" ".join(WORDS[9 - index : 12]) for index in range(5)],
    }
)
SMOOTHED = {"label_smoothing": 0.2, "max_new_tokens": 16}
TEXTS = DataSection()
COMPLETIONS = DataSection(label="label")


def prepared(
    language_models: Path, task: str, family: str, data: DataSection = COMPLETIONS
) -> tuple[Task, LoadedModel, dict[str, torch.Tensor]]:
    auto_class = TASKS[task].class_for(family)
    loaded = load_model(str(language_models / family / auto_class), auto_class, config_overrides={})
    settings = {"type": task, **({} if task == "masked_lm" else SMOOTHED)}
    built = build_task(Recipe(checkpoint="m", task=settings).task, data, ROWS)
    built.attach(loaded.model, loaded.tokenizer)
    features = built.encode(ROWS, loaded.tokenizer, 32, training=True)
    return built, loaded, built.collate(features, np.arange(len(features)), seed=3)


def loss_and_gradients(task: Task, model: Any, batch: Any, whole: bool) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    model.zero_grad()
    outputs = model(**model_inputs(batch)) if whole else call_model(task, model, batch, "__call__", {})
    loss = task.loss(outputs, batch)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return outputs, loss.detach(), {name: gradient.clone() for name, gradient in found.items()}


def check_parity(task: Task, model: Any, batch: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    whole, expected_loss, expected = loss_and_gradients(task, model, batch, whole=True)
    part, loss, gradients = loss_and_gradients(task, model, batch, whole=False)
    targets = task.targets(batch)
    assert targets is not None
    places_BT, labels_M = targets
    assert part.logits.shape[:2] == (1, len(labels_M))
    assert len(labels_M) < whole.logits.shape[0] * whole.logits.shape[1]
    torch.testing.assert_close(logits_at(part.logits, places_BT), whole.logits[places_BT], atol=tolerance, rtol=0.0)
    torch.testing.assert_close(loss, expected_loss, atol=0.0, rtol=tolerance)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=tolerance * largest, rtol=tolerance, msg=name)


@pytest.mark.parametrize(("task", "family"), [*PAIRS, ("masked_lm", "t5")])
def test_same_loss_and_gradients(task: str, family: str, language_models: Path) -> None:
    built, loaded, batch = prepared(language_models, task, family)
    check_parity(built, loaded.model, batch)


def test_packed_texts(language_models: Path) -> None:
    built, loaded, batch = prepared(language_models, "causal_lm", "llama", TEXTS)
    assert "position_ids" in batch
    check_parity(built, loaded.model, batch)


@pytest.mark.parametrize(("task", "family"), [("causal_lm", "llama"), ("masked_lm", "bert"), ("seq2seq", "t5")])
def test_adapters(task: str, family: str, language_models: Path) -> None:
    built, loaded, batch = prepared(language_models, task, family)
    model = make_strategy("lora", r=2, dropout=0.0).apply(loaded.model, loaded.anatomy)
    check_parity(built, model.eval(), batch)


def test_bf16_autocast(language_models: Path) -> None:
    built, loaded, batch = prepared(language_models, "masked_lm", "bert")
    with torch.autocast("cpu", torch.bfloat16):
        check_parity(built, loaded.model, batch, tolerance=2e-2)


def test_predictions_are_those_of_the_whole_forward(language_models: Path) -> None:
    for task, data in (("masked_lm", TEXTS), ("causal_lm", TEXTS)):
        built, loaded, _ = prepared(language_models, task, {"masked_lm": "bert", "causal_lm": "gpt2"}[task], data)
        features = built.encode(ROWS, loaded.tokenizer, 32)
        batch = built.collate(features, np.arange(len(features)))

        def call(batch: Any, whole: bool, model: Any = loaded.model, built: Task = built) -> Any:
            return model(**model_inputs(batch)) if whole else call_model(built, model, batch, "__call__", {})

        with torch.no_grad():
            whole, part = (
                built.predictions(lambda batch, whole=whole: call(batch, whole), batch)  # type: ignore[misc, arg-type]
                for whole in (True, False)
            )
        assert len(whole) == len(part) == len(ROWS)
        for expected, found in zip(whole, part, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_hook_is_gone_afterwards_and_wrappers_are_looked_through() -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, dropout=0.0
    )
    model = BertForMaskedLM(config).eval()
    ids_BT, places_BT = torch.ones(2, 3, dtype=torch.long), torch.tensor([[True, False, False], [False, True, True]])
    wrapper = torch.nn.Module()
    wrapper.module = model
    with logits_only_at(wrapper, places_BT):
        assert model(input_ids=ids_BT).logits.shape == (1, 3, 30)
    assert model(input_ids=ids_BT).logits.shape == (2, 3, 30)
    with pytest.raises(RuntimeError), logits_only_at(model, places_BT):
        raise RuntimeError
    assert model(input_ids=ids_BT).logits.shape == (2, 3, 30)
    compiled = torch.nn.Module()
    compiled._orig_mod = model
    for context in (logits_only_at(compiled, places_BT), logits_only_at(model, None), nullcontext()):
        with context:
            assert model(input_ids=ids_BT).logits.shape == (2, 3, 30)
