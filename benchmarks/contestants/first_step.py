"""From the start of the process to the end of the first optimizer step of a command, then stop.

Settings: command, "hftransfer" or "glue_script".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# Both commands import torch first or soon; the hook needs it.
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.contestants import common
from benchmarks.contestants.common import MAX_LENGTH, Spec


def command_line(spec: Spec) -> list[str]:
    """What a user would type, in a new output folder."""
    output = str(Path(spec.folder) / f"run-{time.time_ns()}")
    if spec.settings["command"] == "glue_script":
        files = ["--train_file", spec.train, "--validation_file", spec.validation]
        return ["glue_script", "--model_name_or_path", spec.checkpoint, *files, "--output_dir", output]
    return [
        *("hftransfer", "run", "text_classification", "--checkpoint", spec.checkpoint, "--output_dir", output),
        *("--data.train", spec.train, "--data.validation", spec.validation, "--data.max_length", str(MAX_LENGTH)),
    ]


def in_preflight() -> bool:
    """Whether a step is one of those that hftransfer tries before it trains, and takes back."""
    frame = sys._getframe()
    while frame is not None:
        if Path(frame.f_code.co_filename).parent.name == "preflight":
            return True
        frame = frame.f_back
    return False


def main(spec: Spec) -> None:
    """Run the command until it has made a step of the training."""

    def stop(*_: object) -> None:
        if in_preflight():
            return
        common.report(spec, time.monotonic() - spec.spawned)
        # Nothing of what would come after the first step is wanted, exit handlers included.
        os._exit(0)

    register_optimizer_step_post_hook(stop)
    sys.argv = command_line(spec)
    if spec.settings["command"] == "glue_script":
        from benchmarks.contestants import glue_script

        glue_script.main()
    else:
        from hftransfer.cli.main import main as hftransfer

        hftransfer()
    sys.exit("the command ended without an optimizer step")


if __name__ == "__main__":
    main(Spec.from_command_line())
