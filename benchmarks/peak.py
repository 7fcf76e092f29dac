"""The highest rate of matrix products on this machine, and the operations that a model itself needs.

    python -m benchmarks.peak SPEC.json     (a contestant of the `peak` case; settings: dtype, native or fp32)

An addition and a multiplication are two operations. Only real tokens count, not padding: a model that pads wastes its
share.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

MIN_SECONDS = 2.0
"""How long each shape is measured."""

# (rows, inputs, outputs): square ones, and the layers of a BERT-base on some thousand tokens.
GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 768, 3072))
SHAPES = ((2048, 2048, 2048), (4096, 4096, 4096), (8192, 768, 768), (8192, 768, 3072), (8192, 3072, 768))


def encoder_operations(config: Any, lengths: Iterable[int]) -> float:
    """Operations of one forward pass of a BERT-like encoder over texts of these lengths, without embeddings and head.

    Per token and block 2 * (4 * D * D + 2 * D * F) for the projections and the feed-forward part, and 4 * T * D for the
    scores of the attention and the mixing of the values. The stock head reads one token, so hftransfer runs what comes
    behind the last block's attention, 2 * (D * D + 2 * D * F), on that token alone, and no more is counted.
    """
    width, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    behind = 2 * (width**2 + 2 * width * inner)
    return float(
        sum(
            blocks * (2 * length * (4 * width**2 + 2 * width * inner) + 4 * length**2 * width) - (length - 1) * behind
            for length in lengths
        )
    )


def product_rate(shape: tuple[int, int, int], dtype: Any, device: str, seconds: float = MIN_SECONDS) -> float:
    """Operations per second of `torch.nn.functional.linear` on one shape, the best of all repetitions."""
    import torch

    rows, inputs, outputs = shape
    left = torch.randn(rows, inputs, device=device, dtype=dtype)
    right = torch.randn(outputs, inputs, device=device, dtype=dtype)
    best, started = float("inf"), time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            torch.nn.functional.linear(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - before)
    return 2 * rows * inputs * outputs / best


def main() -> None:
    """Report the best rate over all shapes as operations in one second."""
    import torch

    from benchmarks.contestants.common import Spec, report
    from benchmarks.machine import computes_bf16

    spec = Spec.from_command_line()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    native = spec.settings["dtype"] == "native" and computes_bf16()
    dtype = torch.bfloat16 if native else torch.float32
    shapes = GPU_SHAPES if device == "cuda" else SHAPES
    rates = {"x".join(map(str, shape)): product_rate(shape, dtype, device) for shape in shapes}
    best = max(rates, key=rates.__getitem__)
    report(spec, 1.0, operations=rates[best], shape=best)


if __name__ == "__main__":
    main()
