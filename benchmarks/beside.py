"""Figures to stand beside the scores: what is reached without learning, and what a trained model does on other data.

    python -m benchmarks.beside unanswerable --data DIR       # SubjQA: never answering
    python -m benchmarks.beside lead --data DIR               # SciTLDR: the first sentence as the summary
    python -m benchmarks.beside chance --data DIR --run RUN   # COPA: accuracy with its interval, and guessing
    python -m benchmarks.beside xquad --data DIR --run RUN    # a model trained on SubjQA answers XQuAD
    python -m benchmarks.beside untouched --data DIR --checkpoint T5   # Multi30k: the checkpoint before any training
    python -m benchmarks.beside perplexity --data DIR --run RUN   # a causal language model before and after training

`--data` holds the configs' data folders. Perplexity is that of the first 200 abstracts of SciTLDR's test data, and of
the right completions of the run's own test data.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset

from benchmarks.cells import CONFIGS
from benchmarks.stats import wilson
from hftransfer import Recipe, Run, evaluate
from hftransfer.inference import TrainedModel
from hftransfer.recipe import DataSection, TaskSection, TextGeneration
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.causal_lm import COMPLETES
from hftransfer.tasks.metrics import question_answering_metrics
from hftransfer.tasks.registry import task_of_model
from hftransfer.tasks.text_metrics import generation_metrics

ABSTRACTS, LENGTH, BATCH = 200, 512, 8


def unanswerable(arguments: argparse.Namespace) -> None:
    """Say of every question that there is no answer."""
    answers = _read(arguments, "subjqa_restaurants")["answers"][:]
    _print(question_answering_metrics([""] * len(answers), [list(one["text"]) for one in answers]))


def lead(arguments: argparse.Namespace) -> None:
    """Give the first sentence of every document as its summary."""
    data = _read(arguments, "scitldr")
    _print(generation_metrics([first_sentence(text) for text in data["document"][:]], data["summaries"][:]))


def chance(arguments: argparse.Namespace) -> None:
    """Accuracy of a run on COPA's test data with its 95 % interval (Wilson)."""
    scores, total = Run(arguments.run).metrics["test"], len(_read(arguments, "copa"))
    low, high = wilson(scores["accuracy"] * total, total)
    apart = "does not lie" if low > scores["chance"] or high < scores["chance"] else "lies"
    print(f"accuracy {scores['accuracy']:.1%} of {total}, 95 % interval {low:.1%} to {high:.1%}")
    print(f"chance, {scores['chance']:.1%}, {apart} in it")


def xquad(arguments: argparse.Namespace) -> None:
    """Scores on XQuAD, where every question has an answer; with the null threshold of the run, and without."""
    columns = {"text": "question", "text_pair": "context", "label": "answers"}
    section = DataSection(test=str(Path(arguments.data, "xquad_en", "test.parquet")), **columns)
    print("with the run's null threshold:")
    _print(evaluate(arguments.run, section))
    trained = TrainedModel.load(arguments.run, section)
    print("answering every question:")
    settings = trained.settings
    _print(
        scores_as(arguments.run, settings, section, _read(arguments, "xquad_en"), {"hftransfer_null_threshold": None})
    )


def untouched(arguments: argparse.Namespace) -> None:
    """Scores of a checkpoint on Multi30k's test data before any training, with the config's prompt."""
    config = yaml.safe_load((CONFIGS / "seq2seq" / "multi30k_en_de.yaml").read_text(encoding="utf-8"))
    recipe = Recipe(**{**config, "checkpoint": arguments.checkpoint})
    _print(scores_as(arguments.checkpoint, recipe.task, recipe.data, _read(arguments, "multi30k_en_de"), {}))


def perplexity(arguments: argparse.Namespace) -> None:
    """Perplexity before and after."""
    recipe = Run(arguments.run).recipe
    texts = _read(arguments, "scitldr").select(range(ABSTRACTS))
    of_text = (DataSection(text="document"), TextGeneration(type="causal_lm"), texts, {COMPLETES: False})
    own = _read(arguments, Path(str(recipe.data.train)).parent.name)
    of_completions = (recipe.data, recipe.task, own, {})
    for what, (columns, settings, data, config) in {"abstracts": of_text, "completions": of_completions}.items():
        for when, model in (("before", recipe.checkpoint), ("after", arguments.run)):
            scores = scores_as(model, settings, columns, data, {"hftransfer_max_length": LENGTH, **config})
            print(f"{what} {when}: perplexity {scores['perplexity']:.2f} (token loss {scores['token_loss']:.4f})")


def scores_as(
    model: str, settings: TaskSection, columns: DataSection, data: Dataset, config: Mapping[str, Any]
) -> dict[str, float]:
    """Scores of a checkpoint or a run under these settings, whatever it was trained for.

    Args:
        model: The folder.
        settings: The task and how it reads the data.
        columns: The columns.
        data: Labelled examples.
        config: Entries of the model's config to put in place of its own.
    """
    trained = TrainedModel.load(model, columns)
    inner = transformers_model(trained.loaded.model)
    for name, value in config.items():
        setattr(inner.config, name, value)
    task = task_of_model(settings, columns, inner.config)
    task.attach(inner, trained.loaded.tokenizer)
    as_wanted = TrainedModel(trained.loaded, settings, columns, task)
    features = as_wanted.encode(data)
    return task.score(as_wanted.run(features, BATCH), features)


def first_sentence(text: str) -> str:
    """The text up to its first full stop, question or exclamation mark that white space follows."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def _read(arguments: argparse.Namespace, name: str) -> Dataset:
    """The test split of a data set."""
    return Dataset.from_parquet(str(Path(arguments.data, name, "test.parquet")))


def _print(scores: Mapping[str, float]) -> None:
    """Scores on one line."""
    print(", ".join(f"{name} {100 * value:.2f}" for name, value in scores.items()))


FIGURES = {action.__name__: action for action in (unanswerable, lead, chance, xquad, untouched, perplexity)}
NEEDS = {"untouched": "checkpoint", "chance": "run", "xquad": "run", "perplexity": "run"}


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", help="the folder of a run")
    parser.add_argument("--checkpoint", help="the folder of a checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    needed = NEEDS.get(arguments.figure)
    if needed is not None and getattr(arguments, needed) is None:
        parser.error(f"{arguments.figure} needs --{needed}")
    torch.set_num_threads(arguments.threads)
    FIGURES[arguments.figure](arguments)


if __name__ == "__main__":
    main()
