"""The cost model against the clock: predict a run from a probe of a few seconds, then run it.

    python -m benchmarks.cost --checkpoint DIR --data DIR [--examples 2000] [--strategies full_fine_tuning,lora]

Prints predicted and measured seconds of every strategy, and ends with status 1 if one of them differs by more than
`TOLERANCE`. The feature cache starts empty; the time of the probe is not counted, loading and final scoring neither.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = 0.25
STRATEGIES = "feature_extraction,top_layers,gradual_unfreezing,full_fine_tuning,lora"


@dataclass(frozen=True)
class Outcome:
    """Predicted and measured seconds of a training."""

    strategy: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured; negative where it is too low."""
        return self.predicted / self.measured - 1

    def line(self) -> str:
        """A row of the table."""
        mark = "" if abs(self.error) <= TOLERANCE else "  beyond the tolerance"
        return f"{self.strategy:20} {self.predicted:10.1f} {self.measured:10.1f} {self.error:+8.1%}{mark}"


def predict_and_run(recipe, train, validation) -> Outcome:
    """One strategy: what the model says, and what the clock says."""
    from hftransfer.advise.rates import predict_cost
    from hftransfer.finetuning import finetune
    from hftransfer.strategies import build_strategy
    from hftransfer.tasks.text_classification import TextClassificationTask
    from hftransfer.training import prepare
    from hftransfer.training.defaults import resolve
    from hftransfer.training.fast_training import fast_training
    from hftransfer.training.precision import build_accelerator

    resolved, origins = resolve(recipe)
    accelerator, _ = build_accelerator(resolved)
    splits = prepare.load_data(resolved, train, validation, None)
    task = TextClassificationTask.from_data(resolved.task, resolved.data, splits.train)
    strategy = build_strategy(resolved.strategy)
    resolved = prepare.derive_pooling(resolved, origins, strategy, task)
    loaded = prepare.load_pretrained(resolved, task, accelerator.mixed_precision)
    resolved = prepare.derive_max_length(resolved, origins, loaded, task, splits.train)
    features = prepare.encode_splits(task, splits, loaded, resolved)
    model = strategy.apply(loaded.model, loaded.anatomy)
    model.to(accelerator.device)
    with fast_training(model, accelerator.device.type):
        cost = predict_cost(
            resolved,
            strategy,
            model,
            features["train"].lengths_N,
            features["validation"].lengths_N,
            devices=accelerator.num_processes,
            precision=str(accelerator.mixed_precision),
        )
    measured = finetune(recipe, train=train, validation=validation).metrics["training"]["seconds"]
    return Outcome(recipe.strategy.type, cost.seconds, measured)


def main() -> None:
    """Parse the command line, measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a pretrained model")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--validation-examples", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--strategies", default=STRATEGIES)
    arguments = parser.parse_args()
    import pandas as pd

    from hftransfer.recipe import Recipe

    train = pd.read_parquet(arguments.data / "train.parquet").head(arguments.examples)
    validation = pd.read_parquet(arguments.data / "test.parquet").head(arguments.validation_examples)
    print(f"{'strategy':20} {'predicted s':>10} {'measured s':>10} {'error':>8}")
    outcomes = []
    for strategy in arguments.strategies.split(","):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HFTRANSFER_CACHE"] = str(Path(folder) / "states")
            recipe = Recipe(
                checkpoint=arguments.checkpoint,
                output_dir=str(Path(folder) / "run"),
                strategy=strategy,
                optim={"num_train_epochs": arguments.epochs},
            )
            outcomes.append(predict_and_run(recipe, train, validation))
            print(outcomes[-1].line(), flush=True)
    sys.exit(any(abs(outcome.error) > TOLERANCE for outcome in outcomes))


if __name__ == "__main__":
    main()
