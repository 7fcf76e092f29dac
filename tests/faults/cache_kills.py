"""SIGKILL while the feature cache is written: whatever is found afterwards must be right.

python -m tests.faults.cache_kills [KILLS]      prints one row of the table of faults
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="hftransfer-kills-"))
os.environ.update(HF_HOME=str(HOME), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_MIXED_PRECISION="no")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import hftransfer.finetuning  # noqa: E402, F401
from hftransfer.caching.store import StateStore  # noqa: E402
from tests.faults.small_runs import start, write_examples  # noqa: E402
from tests.tiny_models import write_tiny_checkpoint  # noqa: E402

# The same row in another batch is rounded differently; another row's states differ by the order of one.
TOLERANCE = 1e-4
FULL_RUN_EVERY = 5


def stored_rows(cache: Path) -> dict[tuple[str, bytes], torch.Tensor]:
    """(space, row) -> states, of every shard that is open to a run."""
    found = {}
    for space in StateStore(cache).spaces():
        for shard in space.shards():
            for row, address in enumerate(shard.hashes_N2):
                states = shard.states_SD[shard.starts_N1[row] : shard.starts_N1[row + 1]]
                found[space.folder.name, address.tobytes()] = states.clone()
    return found


def wait_for_writing(cache: Path, child: object) -> None:
    """Wait until a child begins to write states."""
    while not any(cache.glob("*/.writing-*")) and not any(cache.glob("*/shard-*")):
        assert child.is_alive()  # type: ignore[attr-defined]
        time.sleep(0.002)


def main(kills: int) -> int:
    """Kill, look, and now and then train to the end on what is left."""
    write_tiny_checkpoint(HOME / "checkpoint", "bert")
    data = str(write_examples(HOME / "train.jsonl", 3000))
    held = str(write_examples(HOME / "validation.jsonl", 50, seed=1))
    recipe = {
        "checkpoint": str(HOME / "checkpoint"),
        "data": {"train": data, "validation": held, "streaming": 150},
        "strategy": "feature_extraction",
        "optim": {"num_train_epochs": 2, "per_device_train_batch_size": 64},
    }

    def begin(name: str, cache: Path) -> object:
        return start({**recipe, "output_dir": str(HOME / name)}, cache)

    reference = HOME / "reference"
    child = begin("whole", reference)
    wait_for_writing(reference, child)
    started = time.perf_counter()
    child.join()  # type: ignore[attr-defined]
    assert child.exitcode == 0  # type: ignore[attr-defined]
    duration = time.perf_counter() - started
    right, weights = stored_rows(reference), load_file(HOME / "whole" / "model" / "model.safetensors")
    torn = hits = wrong = runs = unequal = 0
    for number in range(kills):
        cache = HOME / f"cache-{number}"
        child = begin(f"killed-{number}", cache)
        wait_for_writing(cache, child)
        time.sleep(random.Random(number).uniform(0, 0.7 * duration))
        child.kill()  # type: ignore[attr-defined]
        child.join()  # type: ignore[attr-defined]
        torn += any(cache.glob("*/.writing-*"))
        for key, states in stored_rows(cache).items():
            hits += 1
            wrong += key not in right or not torch.allclose(states, right[key], atol=TOLERANCE, rtol=0)
        if number % FULL_RUN_EVERY == 0:
            child = begin(f"after-{number}", cache)
            child.join()  # type: ignore[attr-defined]
            left = load_file(HOME / f"after-{number}" / "model" / "model.safetensors")
            runs += 1
            unequal += not all(torch.allclose(left[name], weights[name], atol=TOLERANCE) for name in weights)
        for path in (cache, HOME / f"killed-{number}", HOME / f"after-{number}"):
            shutil.rmtree(path, ignore_errors=True)
    found = f"{wrong} wrong of {hits:,} rows found afterwards; {torn} kills left a shard half-written"
    after = f"{runs - unequal} of {runs} runs on what was left end as the uninterrupted one"
    print(f"| SIGKILL {kills} times while the feature cache is written | {found}; {after} |")
    return bool(wrong or unequal or not hits or not torn)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
