"""Where the time of a step of full fine-tuning goes, and how much faster any training of the same arithmetic could be.

    python -m benchmarks.profile_step --checkpoint DIR --data DIR

Prints a Markdown table: the share of the operators in some steps of `finetune` under torch's profiler, and the time of
these steps without the profiler beside the time in which this machine's best matrix products would do the same
operations with nothing else to do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from benchmarks.machine import describe
from benchmarks.peak import SHAPES, encoder_operations, product_rate
from hftransfer import Recipe, finetune
from hftransfer.training import loop

# Steps that are passed over, timed and profiled.
WARM_UP, TIMED, PROFILED = 10, 30, 15
BATCH = 32
# Which operators a line of the table gathers, by a part of their name; the first match counts.
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "torch's own attention": ("scaled_dot_product", "flash_attention"),
    "optimizer and clipping": ("adamw", "Optimizer", "vector_norm"),
    "activation function": ("gelu", "tanh"),
    "layer norm": ("layer_norm",),
    "softmax": ("softmax",),
    "dropout": ("Dropout", "dropout", "random"),
    "casts and copies": ("copy", "aten::to", "contiguous", "empty", "clone"),
    "clearing of gradients": ("fill_", "zero"),
    "elementwise": ("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::sum"),
}


class Steps:
    """Stands in for `training_step`: times some steps, profiles later ones, then ends the run."""

    def __init__(self) -> None:
        self.step, self.count = loop.training_step, 0
        self.seconds: list[float] = []
        self.rows: list[Any] = []
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step."""
        self.count += 1
        if self.count == WARM_UP + TIMED + 1:
            self.profiler.__enter__()
        started = time.perf_counter()
        loss = self.step(*args, **kwargs)
        if WARM_UP < self.count <= WARM_UP + TIMED:
            self.seconds.append(time.perf_counter() - started)
            inputs, rows = args[4], args[5]
            self.rows.append(inputs.features.lengths_N[rows].tolist())
        if self.count == WARM_UP + TIMED + PROFILED:
            self.profiler.__exit__(None, None, None)
        return loss


def grouped(times: Iterable[tuple[str, float]], groups: Mapping[str, Sequence[str]]) -> list[tuple[str, float]]:
    """The time of each group, largest first, of names and times; a group gathers what has a part of its in the name."""
    found: Counter[str] = Counter()
    for name, duration in times:
        group = next((group for group, parts in groups.items() if any(part in name for part in parts)), "the rest")
        found[group] += duration
    return found.most_common()


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--data-set", default="sst2")
    arguments = parser.parse_args()
    frame = pd.read_parquet(arguments.data / arguments.data_set / "train.parquet")[["text", "label"]][:2000]
    data = Dataset.from_pandas(frame, preserve_index=False)
    steps = loop.training_step = Steps()  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        optim = {"max_steps": WARM_UP + TIMED + PROFILED, "per_device_train_batch_size": BATCH}
        recipe = Recipe(
            checkpoint=arguments.checkpoint,
            strategy={"type": "full_fine_tuning"},
            optim=optim,
            evaluation={"every": 10**9, "keep": "last"},
            output_dir=f"{folder}/run",
        )
        run = finetune(recipe, train=data, validation=data.select(range(64)))
        bf16 = run.metrics["training"]["mixed_precision"] == "bf16"
    peak = max(product_rate(shape, torch.bfloat16 if bf16 else torch.float32, "cpu") for shape in SHAPES)
    config = AutoConfig.from_pretrained(arguments.checkpoint)
    operations = [3 * encoder_operations(config, rows) for rows in steps.rows]
    share = sum(operations) / peak / sum(steps.seconds)
    machine = describe()
    flags = ", ".join(machine["flags"])
    print(f"\nMachine: {machine['processor']}, {machine['cores']} cores, {flags}\n")
    print("| operators | share of a step |\n|---|---|")
    times = [(event.key, event.self_cpu_time_total) for event in steps.profiler.key_averages()]
    total = sum(duration for _, duration in times)
    for name, duration in grouped(times, GROUPS):
        print(f"| {name} | {duration / total:.1%} |")
    spread = f"{min(steps.seconds):.3f} to {max(steps.seconds):.3f}"
    print(f"\nStep: median {statistics.median(steps.seconds):.3f} s ({spread}), {TIMED} steps of {BATCH} texts.")
    print(
        f"Best matrix products: {peak / 1e12:.2f} Tflop/s. At that rate the blocks' own operations on real tokens "
        f"would take {share:.0%} of the time: nothing that does them can be more than {1 / share:.1f} times faster."
    )


if __name__ == "__main__":
    main()
