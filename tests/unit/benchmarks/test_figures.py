"""Cells and the arithmetic of the figures that stand beside the scores."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from sklearn.metrics import f1_score

from benchmarks import cells
from benchmarks.adapted import macro_f1, paired_difference
from benchmarks.beside import first_sentence
from hftransfer.training.defaults import resolve


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trec6", ("text_classification", "trec6", None, None)),
        ("snips:lora", ("text_classification", "snips", "lora", None)),
        ("token_classification/snips", ("token_classification", "snips", None, None)),
        ("seq2seq/scitldr:lora@folder/t5", ("seq2seq", "scitldr", "lora", "folder/t5")),
        ("trec6@org/name@revision", ("text_classification", "trec6", None, "org/name@revision")),
    ],
)
def test_a_cell_is_read(text, expected):
    assert tuple(cells.Cell.parse(text)) == expected


def test_an_unknown_cell_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match=r"no config seq2seq/trec6; there are .*seq2seq/scitldr"):
        cells.Cell.parse("seq2seq/trec6")


def options(*arguments):
    parser = argparse.ArgumentParser()
    cells.add_arguments(parser, seeds=(1,))
    return parser.parse_args(["--data", "folder", *arguments])


def test_a_budget_is_part_of_the_recipe_and_of_the_folder():
    arguments = options("seq2seq/scitldr", "--epochs", "1", "--rate", "1e-3", "--max_train_examples", "5000")
    recipe = cells.recipe_of(arguments.cells[0], 7, arguments, "out")
    resolved, _ = resolve(recipe)
    assert (resolved.optim.learning_rate, resolved.optim.layer_decay, resolved.optim.num_train_epochs) == (1e-3, 1.0, 1)
    assert (resolved.data.max_train_examples, resolved.seed) == (5000, 7)
    assert resolved.data.test == "folder/scitldr/test.parquet"
    assert recipe.output_dir == "out/seq2seq-scitldr-full_fine_tuning-epochs=1-rate=0.001-rows=5000-7"
    plain = cells.recipe_of(arguments.cells[0], 7, options("seq2seq/scitldr"), "out")
    assert plain.output_dir != recipe.output_dir


def test_another_strategy_does_not_take_the_configs_optimisation():
    arguments = options("stsb", "stsb:lora")
    own, other = (cells.recipe_of(cell, 1, arguments, "out") for cell in arguments.cells)
    assert own.optim.learning_rate == 1e-4
    assert (other.strategy.type, other.optim.learning_rate) == ("lora", None)


def test_macro_f1_of_weighted_rows_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    gold, guessed, weights = rng.integers(3, size=50), rng.integers(3, size=50), rng.integers(4, size=50)
    repeated = np.repeat(np.arange(50), weights)
    expected = f1_score(gold[repeated], guessed[repeated], average="macro")
    assert macro_f1(gold, guessed, weights, 3) == pytest.approx(expected)


def test_the_interval_of_a_difference():
    rng = np.random.default_rng(1)
    gold = rng.integers(3, size=400)

    def guesses(accuracy):
        right = rng.random((4, 400)) < accuracy
        return np.where(right, gold, (gold + 1) % 3)

    same = guesses(0.7)
    nothing = paired_difference(gold, same, same, 3, resamples=50)
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    gain = paired_difference(gold, same, guesses(0.9), 3, resamples=300)
    assert gain.low < gain.mean < gain.high
    assert gain.low > 0.1
    assert gain.mean == pytest.approx(0.2, abs=0.05)
    noise = paired_difference(gold, guesses(0.7), guesses(0.7), 3, resamples=300)
    assert noise.low < 0 < noise.high


def test_the_first_sentence():
    assert first_sentence(" We win. They lose. ") == "We win."
    assert first_sentence("A model with 3.5 layers? Yes.") == "A model with 3.5 layers?"
    assert first_sentence("no end") == "no end"
