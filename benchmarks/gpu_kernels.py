"""Which kernels a step of full fine-tuning spends its time in on a GPU.

    python -m benchmarks.gpu_kernels --checkpoint DIR --data DIR [--length 512] [--mode graphs]

Prints a Markdown table: milliseconds and share by kind of kernel, under torch's profiler, over ten steps of what
`benchmarks.gpu_steps` trains, and how long a step took beside them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants.ours import joined
from benchmarks.gpu_steps import BATCH, GRAPHS, MODES, WINDOW, Clock, add_data, data_and_model, measure
from benchmarks.profile_step import grouped

# What a line of the table gathers, by a part of the kernel's name; the first match counts.
KINDS = {
    "matrix products": ("nvjet", "gemm", "cutlass"),
    "attention": ("sdpa", "fmha", "flash", "dot_do_o", "convert_dq"),
    "optimizer, clipping and clearing": ("multi_tensor",),
    "fused by torch.compile": ("triton",),
    "layer norm": ("layer_norm", "GammaBeta"),
    "activation function": ("Gelu", "tanh"),
    "dropout": ("dropout", "masked_scale"),
    "gradients of biases and other sums": ("reduce_kernel",),
    "casts and copies": ("copy", "Memcpy", "Memset"),
    "elementwise": ("elementwise",),
}


class Profiled(Clock):
    """Notes when steps begin, and profiles the third window of them."""

    def __init__(self) -> None:
        super().__init__()
        self.profiler = profile(activities=[ProfilerActivity.CUDA])
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step."""
        number = len(self.begun)
        if number == 2 * WINDOW:
            self.seconds = time.perf_counter() - self.begun[WINDOW]
            self.profiler.__enter__()
        if number == 3 * WINDOW:
            self.profiler.__exit__(None, None, None)
        return super().__call__(*args, **kwargs)


def main() -> None:
    """Train, profile and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--mode", choices=MODES, default=GRAPHS)
    arguments = parser.parse_args()
    clock = Profiled()
    with data_and_model(arguments) as (split, checkpoint):
        measure(checkpoint, joined(split, arguments.length), arguments.length, arguments.mode, clock)
    kernels = [(event.key, event.self_device_time_total / 1000 / WINDOW) for event in clock.profiler.key_averages()]
    total = sum(duration for _, duration in kernels)
    step = 1000 * clock.seconds / WINDOW
    print(
        f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, {MODES[arguments.mode]}: {BATCH} texts of"
    )
    print(f"{arguments.length} tokens, {step:.1f} ms a step without the profiler, {total:.1f} of them in kernels\n")
    print("| kernels | ms a step | share |\n|---|---|---|")
    for kind, duration in grouped(kernels, KINDS):
        print(f"| {kind} | {duration:.2f} | {duration / total:.0%} |")


if __name__ == "__main__":
    main()
