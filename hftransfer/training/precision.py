"""The Accelerator, with a precision default where the launcher says nothing."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hftransfer.caching.store import default_root
from hftransfer.errors import TrainingError
from hftransfer.safety.files import make_private
from hftransfer.training.carbon import check_carbon, other_trackers
from hftransfer.training.distributed import kind_of, shard_on_cpu

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hftransfer.recipe import Recipe

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
# Processor flags that multiply bf16 matrices natively; without them bf16 is emulated and slower than fp32.
FAST_BF16_FLAGS = ("amx_bf16", "avx512_bf16")


@cache
def processor_flags() -> frozenset[str]:
    """Feature flags of the processor, empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def choose_precision() -> tuple[str, str]:
    """The mixed precision to train in, and why.

    Returns:
        "bf16", "fp16" or "no", and where the choice comes from.
    """
    from_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if from_launcher:
        return from_launcher, "from the launcher"
    if torch.cuda.is_available():
        if torch.cuda.get_device_capability()[0] >= 8:
            return "bf16", "default: the GPU has fast bf16"
        return "no", "default: the GPU has no fast bf16"
    fast = [flag for flag in FAST_BF16_FLAGS if flag in processor_flags()]
    if fast:
        return "bf16", f"default: the processor has {fast[0]}"
    return "no", "default: no fast bf16 here"


def keep_compiled_code_private() -> None:
    """Give torch.compile a folder of its own for machine code: its own choice lies where every user may plant some.

    Raises:
        CacheError: If the folder is not private.
    """
    if COMPILER_CACHE not in os.environ:
        folder = default_root().parent.resolve() / "compiled"
        make_private(folder, f"give a folder of your own with ${COMPILER_CACHE}")
        os.environ[COMPILER_CACHE] = str(folder)


def build_accelerator(recipe: Recipe) -> tuple[Accelerator, str]:
    """The Accelerator of a recipe, and a line that says device, processes and precision with its origin.

    Raises:
        RecipeError: If emissions are to be measured and cannot be.
        TrainingError: If fewer processes run than the launcher was asked for, or a tracker is unknown.
    """
    from accelerate import Accelerator
    from accelerate.utils import TorchDynamoPlugin

    check_carbon(recipe.trackers)
    trackers = other_trackers(recipe.trackers)
    precision, origin = choose_precision()
    if recipe.optim.torch_compile:
        keep_compiled_code_private()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=trackers or None,
            project_dir=recipe.output_dir if trackers else None,
            # Without this a launcher that was told of several processes starts them and joins none on a CPU.
            cpu=not torch.accelerator.is_available(),
        )
    except ValueError as error:
        raise TrainingError(str(error), fix="look at --trackers and at the launcher's --mixed_precision") from error
    wants_sharding = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_sharding and accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        shard_on_cpu(accelerator)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise TrainingError(
            f"{expected} processes were asked for and {accelerator.num_processes} run",
            fix="on CPU launch with `torchrun --nproc_per_node 2` or `accelerate launch --multi_gpu --num_processes 2`",
        )
    # Accelerate keeps what the first Accelerator of a process was told; the next run may want something else.
    backend = "inductor" if recipe.optim.torch_compile else None
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=backend)
    plural = "es" if accelerator.num_processes > 1 else ""
    processes = f"{accelerator.num_processes} process{plural}"
    if accelerator.num_processes > 1:
        processes += f" ({kind_of(accelerator)})"
    line = f"{accelerator.device.type}, {processes}, mixed precision {precision} ({origin})"
    return accelerator, line
