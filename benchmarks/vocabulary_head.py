"""How much faster a language model's training step is when logits are computed where there is a label alone.

    python -m benchmarks.vocabulary_head masked_lm/scicite@DIR causal_lm/snips_intents@DIR --data DIR

For each cell the recipe's model, strategy and batches: forward, loss, backward and AdamW, with the logits of all places
and with those that have a label, in turns on the same batch. Prints the median of each and the ratio of the two with
its lowest and highest round.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from benchmarks import cells
from benchmarks.stats import ratio_spread
from hftransfer.caching.states import call_model, model_inputs
from hftransfer.data.load import load_splits
from hftransfer.recipe import Recipe
from hftransfer.strategies import build_strategy
from hftransfer.tasks.registry import build_task
from hftransfer.training import prepare
from hftransfer.training.defaults import resolve
from hftransfer.training.fast_training import fast_training
from hftransfer.training.steps import EpochBatches

ROWS, WARM_UP = 1024, 2


def measure(recipe: Recipe, rounds: int) -> None:
    """Print one cell."""
    recipe, _ = resolve(recipe)
    splits = load_splits(recipe.data, seed=recipe.seed, stratify=False, task=recipe.task)
    task = build_task(recipe.task, recipe.data, splits.train)
    loaded = prepare.load_pretrained(recipe, task, "bf16")
    recipe = prepare.derive_max_length(recipe, {}, loaded, task, splits.train)
    train = splits.train.select(range(min(ROWS, len(splits.train))))
    features = task.encode(train, loaded.tokenizer, recipe.data.max_length or 0, training=True)
    strategy = build_strategy(recipe.strategy)
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    strategy.enter_stage(model, strategy.stages(loaded.anatomy)[-1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    batches = EpochBatches(features.lengths_N, recipe.optim.per_device_train_batch_size, recipe.seed)

    def step(number: int, whole: bool) -> float:
        batch = task.collate(features, batches[number], number)
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(**model_inputs(batch)) if whole else call_model(task, model, batch, "__call__", {})
            loss = task.loss(outputs, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    model.train()
    with fast_training(model, "cpu"):
        for number in range(WARM_UP):
            for whole in (True, False):
                step(number, whole)
        numbers = range(WARM_UP, WARM_UP + rounds)
        timed = [(step(number, True), step(number, False)) for number in numbers]
    batch = task.collate(features, batches[0], 0)
    targets = task.targets(batch)
    assert targets is not None
    whole_s, part_s = np.median(timed, axis=0)
    ratio = ratio_spread({n: one for n, (one, _) in enumerate(timed)}, {n: one for n, (_, one) in enumerate(timed)})
    print(
        f"{recipe.task.type}, {recipe.strategy.type}: {1000 * whole_s:.0f} ms a step with all logits, "
        f"{1000 * part_s:.0f} ms with {targets[0].float().mean():.0%} of them: {ratio.median:.2f} times as fast "
        f"({ratio.low:.2f} to {ratio.high:.2f}, {rounds} rounds)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cells.add_arguments(parser, seeds=(1,))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for cell in arguments.cells:
        measure(cells.recipe_of(cell, arguments.seeds[0], arguments, "runs"), arguments.rounds)


if __name__ == "__main__":
    main()
