"""How long a training waits for a checkpoint: seconds per 100 million parameters that learn, each with its moments.

python scripts/measure_checkpoint.py --parameters 25000000 --repeats 7
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from hftransfer import Recipe
from hftransfer.training.state import Batching, Progress, TrainingState

WIDTH = 1000


def an_optimizer(parameters: int) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """Matrices of a million numbers, and AdamW over them with its moments in place."""
    weights = {f"layer.{number}": torch.randn(WIDTH, WIDTH) for number in range(max(1, parameters // WIDTH**2))}
    learned = [torch.nn.Parameter(weight) for weight in weights.values()]
    optimizer = torch.optim.AdamW(learned, fused=True)
    for parameter in learned:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return weights, optimizer


def main() -> None:
    """Save several times, and print what each part took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    weights, optimizer = an_optimizer(arguments.parameters)
    best = {name: weight.clone() for name, weight in weights.items()}
    unit = sum(weight.numel() for weight in weights.values()) / 1e8
    waits, computing, wholes, copies = [], [], [], []
    # The same bytes, weights and two moments, into memory that has been touched: what any copy would take.
    source = torch.randn(3 * sum(weight.numel() for weight in weights.values()))
    target = torch.zeros_like(source)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(checkpoint="none", output_dir=folder)
        state = TrainingState(Path(folder), recipe, "", "", Accelerator(cpu=True))
        state.prepare(weights, optimizer)
        state.flush()
        for step in range(1, arguments.repeats + 1):
            started, computed = time.perf_counter(), time.thread_time()
            state.save(Progress(step=step), weights, best, optimizer, Batching(1, 1))
            waits.append((time.perf_counter() - started) / unit)
            # What the training's thread computed in that time: not longer on a machine that has other work.
            computing.append((time.thread_time() - computed) / unit)
            state.flush()
            wholes.append((time.perf_counter() - started) / unit)
            started = time.perf_counter()
            target.copy_(source)
            copies.append((time.perf_counter() - started) / unit)
        state.close()
    for what, values in (
        ("the training waits", waits),
        ("of that it computes", computing),
        ("a plain copy of as many bytes takes", copies),
        ("until it is on the disk", wholes),
    ):
        print(f"{what}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"per 100 million parameters, {len(waits)} checkpoints of {unit * 1e8:,.0f}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
