"""One optimizer step: accumulation equals one large batch, batches and seeds are functions of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from hftransfer.caching.states import PlainInputs
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.tasks.tokenization import tokenize
from hftransfer.training.steps import EpochBatches, step_seed, training_step
from hftransfer.training_settings import OptimSection
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer

LABELS = np.asarray([0, 1, 2, 2, 2, 0, 2, 1])


class Recorder:
    """In the optimizer's place: keeps the gradients."""

    def __init__(self, model):
        self.model, self.gradients = model, {}
        self.param_groups = [{"params": list(model.parameters())}]

    def step(self):
        self.gradients = {
            name: parameter.grad.clone()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad(set_to_none)


def a_task(**settings):
    task = TextClassificationTask(
        TextClassification(**settings), DataSection(), Labels("single_label", ("a", "b", "c"))
    )
    if settings.get("balance") == "classes":
        task.class_weights_C = torch.tensor([0.5, 3.0, 1.0])
    return task


def run_step(task, rows, micro_batch, max_grad_norm=0.0):
    texts = [" ".join(WORDS[index : index + 1 + 3 * index]) for index in range(8)]
    features = tokenize(tiny_tokenizer("bert"), texts, None, 64, LABELS)
    model = tiny_classifier("bert", dropout=0.0).train()
    recorder = Recorder(model)
    optim = OptimSection(per_device_train_batch_size=micro_batch, max_grad_norm=max_grad_norm)
    accelerator, inputs = Accelerator(cpu=True, mixed_precision="no"), PlainInputs(task, features)
    result = training_step(accelerator, model, recorder, task, inputs, rows, optim, seed=1, step=0)
    return result.loss, recorder.gradients


@pytest.mark.parametrize("settings", [{}, {"balance": "classes", "label_smoothing": 0.1}])
@pytest.mark.parametrize("rows", [np.arange(8), np.asarray([6, 0, 5, 3, 7, 1, 2])], ids=["whole", "last-is-partial"])
def test_accumulation_equals_one_batch(settings, rows):
    loss, gradients = run_step(a_task(**settings), rows, 8)
    for micro_batch in (2, 4):
        other_loss, other = run_step(a_task(**settings), rows, micro_batch)
        assert other_loss == pytest.approx(loss, abs=1e-6)
        assert other.keys() == gradients.keys()
        for name in gradients:
            torch.testing.assert_close(other[name], gradients[name], atol=1e-6, rtol=1e-5)


def test_the_loss_and_gradient_are_those_of_the_plain_mean():
    rows = np.arange(8)
    loss, gradients = run_step(a_task(), rows, 4)
    model = tiny_classifier("bert", dropout=0.0).train()
    texts = [" ".join(WORDS[index : index + 1 + 3 * index]) for index in range(8)]
    batch = tiny_tokenizer("bert")(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    plain = model(**batch, labels=torch.from_numpy(LABELS)).loss
    plain.backward()
    assert loss == pytest.approx(plain.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped_once_all_are_there():
    _, gradients = run_step(a_task(), np.arange(8), 2, max_grad_norm=0.01)
    norm = torch.stack([value.norm() for value in gradients.values()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_batches_are_a_function_of_the_step():
    lengths = np.arange(3, 24)
    forward, random_access = EpochBatches(lengths, 4, seed=5), EpochBatches(lengths, 4, seed=5)
    assert forward.per_epoch == 6
    seen = [forward[step].tolist() for step in range(18)]
    for step in (17, 0, 7, 6, 12):
        assert random_access[step].tolist() == seen[step]
    for epoch in range(3):
        assert sorted(row for batch in seen[6 * epoch : 6 * epoch + 6] for row in batch) == list(range(21))


def test_seeds_differ_by_step_micro_step_and_rank():
    seeds = {step_seed(a, b, c, d) for a in range(3) for b in range(3) for c in range(3) for d in range(3)}
    assert len(seeds) == 81
    assert all(0 <= seed < 2**63 for seed in seeds)
