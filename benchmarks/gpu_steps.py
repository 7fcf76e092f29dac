"""What a step of full fine-tuning takes on a GPU: kernel by kernel, as a CUDA graph, and compiled.

    python -m benchmarks.gpu_steps --checkpoint DIR --data DIR [--lengths 32 128 512] [--modes MODE ...]

Prints a Markdown table: the median time of a step with its quartiles, by length of the texts, and the most memory that
torch has had allocated. A time is the mean of ten steps, behind which the run waits for the GPU. The model has random
weights in the size of BERT-base; DIR gives the tokenizer.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig

from benchmarks.contestants.common import read_rows
from benchmarks.contestants.ours import joined
from benchmarks.peak import GPU_SHAPES, encoder_operations, product_rate
from hftransfer import Recipe, finetune
from hftransfer.training import loop
from hftransfer.training.graphs import SWITCH

BATCH = 32
BATCHES = {"per_device_train_batch_size": BATCH}
# A run waits for its GPU behind so many steps: what lies between is timed as a whole. In the first of these windows
# graphs are recorded and models compiled; it is passed over.
WINDOW = loop.LOG_EVERY
TIMES = 5
KERNELS, GRAPHS, COMPILED = "kernels", "graphs", "compiled"
MODES = {KERNELS: "kernel by kernel", GRAPHS: "CUDA graphs", COMPILED: "torch.compile"}


class Clock:
    """Stands in for `training_step`: notes when steps begin."""

    def __init__(self) -> None:
        self.step, self.begun = loop.training_step, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step."""
        self.begun.append(time.perf_counter())
        return self.step(*args, **kwargs)


def measure(checkpoint: str, rows: Dataset, length: int, mode: str, clock: Clock | None = None) -> dict[str, Any]:
    """The times of a step in milliseconds, the memory in MiB, and how long the first window took in seconds."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    os.environ[SWITCH] = str(int(mode != KERNELS))
    clock = loop.training_step = clock or Clock()  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(
                checkpoint=checkpoint,
                data={"max_length": length},
                strategy={"type": "full_fine_tuning"},
                optim={"max_steps": WINDOW * (TIMES + 1) + 1, "torch_compile": mode == COMPILED, **BATCHES},
                evaluation={"every": 10**9, "keep": "last", "calibration": "none"},
                output_dir=f"{folder}/run",
            )
            finetune(recipe, train=rows, validation=rows.select(range(8)))
    finally:
        loop.training_step = clock.step
    begun = clock.begun[::WINDOW]
    times = [1000 * (after - before) / WINDOW for before, after in pairwise(begun[1:])]
    memory = torch.cuda.max_memory_allocated() / 2**20
    return {"times": times, "memory": memory, "warm_up": begun[1] - begun[0]}


def add_data(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is trained."""
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--data-set", default="sst2")


@contextmanager
def data_and_model(arguments: argparse.Namespace) -> Iterator[tuple[Dataset, str]]:
    """Texts with labels, and the folder of a model with random weights in the size of BERT-base."""
    texts, labels = read_rows(str(arguments.data / arguments.data_set / "train.parquet"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.random_checkpoint", arguments.checkpoint, folder]
        subprocess.run(command, check=True, capture_output=True)
        yield Dataset.from_dict({"text": texts[:1024], "label": labels[:1024]}), folder


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES)[:2], help="compiling takes minutes")
    arguments = parser.parse_args()
    peak = max(product_rate(shape, torch.bfloat16, "cuda") for shape in GPU_SHAPES)
    modes = arguments.modes
    lines = []
    with data_and_model(arguments) as (split, folder):
        config = AutoConfig.from_pretrained(folder)
        for length in arguments.lengths:
            rows = joined(split, length)
            operations = 3 * BATCH * encoder_operations(config, [length])
            # There and back, so that no mode has the warmer card.
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in modes}
            for name in [*modes, *reversed(modes)]:
                found[name].append(measure(folder, rows, length, name))
            for name, results in found.items():
                times = sorted(time for one in results for time in one["times"])
                low, median, high = statistics.quantiles(times, n=4)
                lines.append(
                    f"| {length} | {MODES[name]} | {median:.1f} | {low:.1f} to {high:.1f} "
                    f"| {operations / (median / 1000) / peak:.0%} | {max(one['memory'] for one in results):,.0f} MiB "
                    f"| {results[0]['warm_up']:.1f} |"
                )
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, {2 * TIMES * WINDOW} steps of {BATCH}")
    print(f"texts each; best matrix products {peak / 1e12:.0f} Tflop/s\n")
    print(f"| tokens | a step runs | ms | quartiles | share of the peak | GPU memory | first {WINDOW} steps, s |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
