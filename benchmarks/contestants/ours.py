"""hftransfer.

Settings: mode, and recipe (sections of a Recipe). Modes:
    finetune   `finetune(recipe)`, from the tokenization to the last step and one evaluation on validation data;
               seeds (how many, in one call), whole (time all of the call), counts (report the operations of the loop
               or of the encoding), scored (whether to score the test data), tokens (join texts up to a length)
    probe      encode through the feature cache and fit a logistic regression with its default penalty
    heads      encode, then train many heads at once (heads: the arguments of `hftransfer.advise.probe.probe`); clock is
               encoding (the pass alone, without the tokenization) or heads
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Everything that the timed section would otherwise import, as the peers do it.
import accelerate
import datasets
import evaluate  # noqa: F401
import peft  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from transformers import AutoConfig, AutoTokenizer

from benchmarks.contestants import common
from benchmarks.contestants.common import MAX_LENGTH, Spec
from benchmarks.peak import encoder_operations
from hftransfer import Recipe, Run, finetune, predict
from hftransfer.training import prepare

# One evaluation, after the last step: the peers have one, too.
NEVER = 10**9


def recipe_of(spec: Spec, seed: int) -> Recipe:
    """The recipe of one training; what the settings leave out is hftransfer's default."""
    sections = spec.settings["recipe"]
    return Recipe(
        checkpoint=spec.checkpoint,
        data={"max_length": spec.settings.get("tokens", MAX_LENGTH)},
        evaluation={"every": NEVER, "keep": "last"},
        output_dir=str(Path(spec.folder) / f"run-{seed}"),
        seed=seed,
        seeds=spec.settings.get("seeds"),
        **sections,
    )


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """The seconds of every call of a function, while the context lasts."""
    function, seconds = getattr(owner, name), []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, wrapper)
    try:
        yield seconds
    finally:
        setattr(owner, name, function)


def train(spec: Spec) -> None:
    """Call `finetune` once per seed, and report."""
    splits = {"train": common.read_dataset(spec.train), "validation": common.read_dataset(spec.validation)}
    if "tokens" in spec.settings:
        splits = {name: joined(split, spec.settings["tokens"]) for name, split in splits.items()}
    with timed(prepare, "load_pretrained") as loads:
        started = time.perf_counter()
        run = finetune(recipe_of(spec, spec.seed), **splits)
        whole = time.perf_counter() - started
    facts = run.metrics["training"]
    if len(loads) != 1:
        raise RuntimeError("finetune does not load through prepare any more: mend this clock")
    # Scoring in full precision with saving, and the report, come after the training; the peers' clock has stopped then.
    of_seeds = [Run(folder).metrics["training"] for folder in run.folder.glob("seeds/*")] or [facts]
    after = sum(one["scoring_seconds"] + one["report_seconds"] for one in of_seeds)
    lengths = token_lengths(spec)
    if "tokens" in spec.settings:
        lengths = {name: [spec.settings["tokens"]] * len(split) for name, split in splits.items()}
    fields: dict[str, Any] = {
        "tokens": sum(lengths["train"]) * recipe_epochs(run),
        "whole_seconds": whole,
        "load_seconds": sum(loads),
        "disk_bytes": sum(path.stat().st_size for path in cache_files(spec)),
        "facts": {name: value for name, value in facts.items() if name.startswith("cache_")},
        "precision": facts["mixed_precision"],
    }
    seconds = whole if spec.settings.get("whole") else whole - sum(loads) - after
    if "counts" in spec.settings:
        seconds, fields["operations"] = counted(spec, run, lengths)
    if spec.settings.get("scored", True):
        texts, labels = common.read_rows(spec.test)
        found = [int(record["prediction"]) for record in predict(run, texts)]
        fields |= common.count_correct(found, labels)
    common.report(spec, seconds, **fields)


def joined(split: datasets.Dataset, tokens: int) -> datasets.Dataset:
    """As many rows, each of so many texts that it has at least these tokens: a word is a token or more."""
    texts, rows = split["text"][:], []
    for start in range(len(texts)):
        words: list[str] = []
        while len(words) < tokens:
            words += texts[(start + len(words)) % len(texts)].split()
        rows.append(" ".join(words))
    return datasets.Dataset.from_dict({"text": rows, "label": split["label"][:]})


def recipe_epochs(run: Any) -> int:
    """Passes over the training data."""
    epochs: int = run.recipe.optim.num_train_epochs
    return epochs


def token_lengths(spec: Spec) -> dict[str, list[int]]:
    """Tokens of every text of both splits."""
    tokenizer = AutoTokenizer.from_pretrained(spec.checkpoint)
    paths = {"train": spec.train, "validation": spec.validation}
    return {name: common.count_tokens(tokenizer, common.read_rows(path)[0]) for name, path in paths.items()}


def counted(spec: Spec, run: Any, lengths: dict[str, list[int]]) -> tuple[float, float]:
    """The seconds of the loop, or of the encoding, and the operations that the model itself needs for them."""
    config = AutoConfig.from_pretrained(spec.checkpoint)
    facts = run.metrics["training"]
    forward = {name: encoder_operations(config, rows) for name, rows in lengths.items()}
    if spec.settings["counts"] == "encoding":
        return facts["cache_encoding_seconds"], forward["train"] + forward["validation"]
    # The backward pass costs two forward passes. The loop evaluates once.
    return facts["seconds"], 3 * forward["train"] * recipe_epochs(run) + forward["validation"]


def cache_files(spec: Spec) -> list[Path]:
    """What the feature cache has written; the harness gives every sample a cache of its own."""
    return [path for path in (Path(spec.folder) / "cache").rglob("*") if path.is_file()]


@contextmanager
def frozen_encoder(spec: Spec) -> Iterator[Callable[[datasets.Dataset], tuple[torch.Tensor, float]]]:
    """A function from rows to their vectors (N, D) and the seconds of the encoding pass; loading is over."""
    from hftransfer.caching.cache import BoundaryCache
    from hftransfer.strategies import build_strategy
    from hftransfer.tasks.text_classification import TextClassificationTask
    from hftransfer.training.defaults import resolve
    from hftransfer.training.fast_training import fast_training
    from hftransfer.training.precision import build_accelerator

    recipe, known = resolve(recipe_of(spec, spec.seed))
    accelerator, _ = build_accelerator(recipe)
    task = TextClassificationTask.from_data(recipe.task, recipe.data, common.read_dataset(spec.train))
    strategy = build_strategy(recipe.strategy)
    recipe = prepare.derive_pooling(recipe, known, strategy, task)
    loaded = prepare.load_pretrained(recipe, task, accelerator.mixed_precision)
    boundary = loaded.anatomy.head_depth
    model = accelerator.prepare_model(strategy.apply(loaded.model, loaded.anatomy))

    def encode(rows: datasets.Dataset) -> tuple[torch.Tensor, float]:
        features = task.encode(rows, loaded.tokenizer, MAX_LENGTH)
        cache = BoundaryCache(recipe, task, accelerator, {"train": features})
        with cache.stage(model, [boundary], passes=2.0) as inputs:
            split = inputs.splits["train"]
            return split.states.gather(features.example_N, split.compute)[:, 0], inputs.encoding_seconds

    with fast_training(model, accelerator.device.type):
        yield encode


def probe(spec: Spec) -> None:
    """Encode, fit a logistic regression, and report."""
    from hftransfer.advise.linear import logistic_regression

    train, test = common.read_dataset(spec.train), common.read_dataset(spec.test)
    with frozen_encoder(spec) as encode:
        started = time.perf_counter()
        head = logistic_regression(encode(train)[0], train["label"][:])
        seconds = time.perf_counter() - started
        found = head(encode(test)[0]).argmax(-1).tolist()
    tokens = sum(token_lengths(spec)["train"])
    common.report(spec, seconds, tokens=tokens, **common.count_correct(found, test["label"][:]))


def heads(spec: Spec) -> None:
    """Encode, train a head for every combination of the settings, and report the one or the other."""
    from hftransfer.advise.probe import probe as train_heads

    splits = [common.read_dataset(path) for path in (spec.train, spec.validation, spec.test)]
    with frozen_encoder(spec) as encode:
        (train, seconds), (validation, _), (test, _) = (encode(split) for split in splits)
        if spec.settings["clock"] == "heads":
            started = time.perf_counter()
            held_out = {"validation_features_MD": validation, "validation_labels": splits[1]["label"][:]}
            result = train_heads(train, splits[0]["label"][:], **spec.settings["heads"], **held_out)
            seconds = time.perf_counter() - started
            found = result.best(test).argmax(-1).tolist()
            scored = common.count_correct(found, splits[2]["label"][:])
        else:
            scored = {}
    common.report(spec, seconds, tokens=sum(token_lengths(spec)["train"]), **scored)


MODES = {"finetune": train, "probe": probe, "heads": heads}


def main(spec: Spec) -> None:
    """Do what the settings say."""
    datasets.disable_progress_bars()
    accelerate.utils.set_seed(spec.seed)
    MODES[spec.settings.get("mode", "finetune")](spec)


if __name__ == "__main__":
    main(Spec.from_command_line())
