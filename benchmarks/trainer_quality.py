"""What transformers' own classes reach on the data of a config with the config's budget.

    python -m benchmarks.trainer_quality stsb --checkpoint DIR --data DIR --seeds 1
    python -m benchmarks.trainer_quality seq2seq/multi30k_en_de:lora@DIR_OF_T5 --data DIR \\
        --max_train_examples 5000 --epochs 1

The stock model for the task, its data prepared as transformers' example scripts do it (benchmarks/trainers); epochs,
batch, peak rate, warm-up and decay of the config's recipe, one rate for all layers; the best epoch by the recipe's
metric on validation data. Scores come from the same functions, on the same rows, as ours; what max_length cuts off is
missed. Every line of output is one seed.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from benchmarks import cells
from benchmarks.trainers.base import Baseline, train
from benchmarks.trainers.classes import MultipleChoice, SequenceClassification
from benchmarks.trainers.language import CausalLM, MaskedLM, Seq2Seq
from benchmarks.trainers.spans import QuestionAnswering, TokenClassification

BASELINES: dict[str, type[Baseline]] = {
    "text_classification": SequenceClassification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "seq2seq": Seq2Seq,
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cells.add_arguments(parser, seeds=(1,))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for cell in arguments.cells:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                recipe = cells.recipe_of(cell, seed, arguments, folder)
                metric, scores = train(BASELINES[cell.task], recipe, folder)
            validation = cells.written(metric, scores["validation"][metric])
            test = ", ".join(
                f"{name} {cells.written(name, value)}" for name, value in scores["test"].items() if "/" not in name
            )
            print(
                f"{cell.task}/{cell.data_set} {recipe.strategy.type} seed {seed}: "
                f"{metric} {validation} on validation; on test data {test}"
            )


if __name__ == "__main__":
    main()
