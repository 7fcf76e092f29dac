"""Micro-batches as graphs: what is recorded when, how batches are padded, and that nothing changes the gradients.

On a CPU the recorder repeats the pass itself; tests/gpu holds real graphs against the passes that they repeat.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from hftransfer.caching.states import PlainInputs
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.base import IGNORED, PLACES, Features, Ragged
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.tasks.tokenization import tokenize
from hftransfer.training.graphs import Graphs, rounded_up
from hftransfer.training.steps import training_step
from hftransfer.training_settings import OptimSection
from tests.recording import Never, Repeats
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer

CPU = torch.device("cpu")
LABELS = np.asarray([0, 1, 2, 2, 2, 0, 2, 1])


def inputs_of(lengths):
    texts = [" ".join(WORDS[:length]) for length in lengths]
    task = TextClassificationTask(TextClassification(), DataSection(), Labels("single_label", ("a", "b", "c")))
    return task, PlainInputs(task, tokenize(tiny_tokenizer("bert"), texts, None, 64, LABELS[: len(lengths)]))


def steps(graphs_of, dropout=0.1, count=6):
    """Losses and final weights of some steps on the same eight texts."""
    task, inputs = inputs_of([2, 3, 4, 5, 6, 7, 8, 9])
    torch.manual_seed(0)
    model = tiny_classifier("bert", dropout=dropout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator, optim = Accelerator(cpu=True, mixed_precision="no"), OptimSection(per_device_train_batch_size=4)
    graphs, losses = graphs_of(task, inputs), []
    for step in range(count):
        # The last step has a shape of its own.
        rows = np.arange(8) if step < count - 1 else np.arange(3)
        result = training_step(
            accelerator, model, optimizer, task, inputs, rows, optim, seed=1, step=step, graphs=graphs
        )
        losses.append(result.loss)
    return losses, {name: weight.detach().clone() for name, weight in model.named_parameters()}, graphs


def graphs_with(recorder, said=None):
    def make(task, inputs):
        say = (lambda line: None) if said is None else said.append
        return Graphs(inputs, task.pad_values, CPU, say, recorder)

    return make


def test_replayed_steps_give_the_bits_of_passes_that_are_run():
    said = []
    run, replayed = steps(graphs_with(Never(), said)), steps(graphs_with(Repeats()))
    assert replayed[0] == run[0]
    assert all(torch.equal(replayed[1][name], weight) for name, weight in run[1].items())
    # Two micro-batches of one shape in each of five steps: the first runs, the second is recorded.
    assert replayed[2].recorder.recorded == 1
    assert replayed[2].replayed == 8
    assert run[2].replayed == 0
    assert said == ["No more CUDA graphs: this cannot be recorded"]


def test_padding_to_few_lengths_changes_neither_losses_nor_weights_without_dropout():
    plain, replayed = steps(lambda task, inputs: None, dropout=0.0), steps(graphs_with(Repeats()), dropout=0.0)
    assert replayed[0] == pytest.approx(plain[0], abs=1e-5)
    for name, weight in plain[1].items():
        torch.testing.assert_close(replayed[1][name], weight, atol=1e-5, rtol=1e-4)


def test_a_graph_that_does_not_repeat_its_pass_is_not_used():
    said = []
    wrong, run = steps(graphs_with(Repeats(factor=1.01), said)), steps(graphs_with(Never()))
    assert wrong[2].replayed == 0
    assert wrong[0] == run[0]
    assert len(said) == 1
    assert said[0].startswith("No more CUDA graphs: a replayed batch has a loss of ")


def test_an_error_that_is_no_failed_recording_is_not_swallowed():
    with pytest.raises(KeyError):
        steps(graphs_with(Repeats(error=KeyError("a fault of ours"))))


def test_labels_and_places_of_tokens_are_padded_with_what_is_ignored():
    task, inputs = inputs_of([2, 3])
    features = Features(
        columns=inputs.features.columns,
        offsets_N1=inputs.features.offsets_N1,
        labels=Ragged.from_rows([[1, 2], [0]], np.int64),
        example_N=np.arange(2),
    )
    batch = {**task.collate(features, np.arange(2)), PLACES: torch.tensor([[1, 2], [1, -1]])}
    found = Graphs(PlainInputs(task, features), task.pad_values, CPU, print, Never()).widened(batch)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == dict.fromkeys(batch, (2, 16))
    width = batch["input_ids"].shape[1]
    for name, fill in (("labels", IGNORED), (PLACES, -1), ("attention_mask", 0)):
        kept = batch[name].shape[1]
        assert torch.equal(found[name][:, :kept], batch[name])
        assert (found[name][:, kept:] == fill).all()
    assert (found["input_ids"][:, width:] == task.pad_values["input_ids"]).all()


def test_rows_of_one_vector_stay_as_they_are():
    task, inputs = inputs_of([2, 3])
    batch = {
        "attention_mask": torch.ones(2, 1),
        "boundary_states": torch.ones(2, 1, 5),
        "labels": torch.ones(2, 3),
    }
    found = Graphs(inputs, task.pad_values, CPU, print, Never()).widened(batch)
    assert found.keys() == batch.keys()
    assert all(found[name] is batch[name] for name in batch)


def test_labels_of_rows_are_not_padded_however_many_there_are():
    task, inputs = inputs_of([2, 3])
    batch = task.collate(inputs.features, np.arange(2))
    batch["labels"] = torch.ones(batch["input_ids"].shape)
    assert Graphs(inputs, task.pad_values, CPU, print, Never()).widened(batch)["labels"] is batch["labels"]


@given(st.integers(1, 10_000))
def test_lengths_are_few_and_at_most_a_quarter_too_long_beyond_sixty(length):
    found = rounded_up(length)
    assert length <= found
    assert rounded_up(found) == found
    assert length <= 60 or found <= 1.26 * length
