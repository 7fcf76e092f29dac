"""Many trainings at once on one feature cache, empty at first: all must leave the same weights.

python -m tests.faults.concurrent [RUNS]      prints one row of the table of faults
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="hftransfer-concurrent-"))
os.environ.update(HF_HOME=str(HOME), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_MIXED_PRECISION="no")

import hftransfer.finetuning  # noqa: E402, F401
from tests.faults.small_runs import fingerprint, start, write_examples  # noqa: E402
from tests.tiny_models import write_tiny_checkpoint  # noqa: E402

STRATEGIES = ("feature_extraction", "gradual_unfreezing", "top_layers")


def main(runs: int) -> int:
    """For each strategy: so many runs on an empty cache, then as many on the full one."""
    write_tiny_checkpoint(HOME / "checkpoint", "bert")
    data = str(write_examples(HOME / "train.jsonl", 600))
    failed, counts = 0, []
    for strategy in STRATEGIES:
        hashes = set()
        for state in ("empty", "full"):
            outputs = [HOME / f"{strategy}-{state}-{number}" for number in range(runs)]
            recipe = {"checkpoint": str(HOME / "checkpoint"), "data": {"train": data}, "strategy": strategy}
            recipe["optim"] = {"num_train_epochs": 2}
            children = [start({**recipe, "output_dir": str(output)}, HOME / "states") for output in outputs]
            for child in children:
                child.join()
            failed += sum(child.exitcode != 0 for child in children)
            hashes |= {fingerprint(output) for output in outputs if (output / "model").is_dir()}
        counts.append(len(hashes))
    different = sum(count - 1 for count in counts)
    which = f"{2 * runs * len(STRATEGIES)} runs ({', '.join(STRATEGIES)}; on an empty and on a full cache)"
    print(f"| {runs} concurrent runs, one cache | {which}: {failed} failed, {different} with other weights than due |")
    return bool(failed or different)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
