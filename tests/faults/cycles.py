"""Many short runs in one process: neither memory nor open files grow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.faults.workshop import CHILD_SECONDS, ROWS, Outcome, Workshop

FAULT = "200 short cycles in one process"
FULL, SHORT = 200, 0
# Of the cycles; before, caches of the libraries fill up.
WARM_UP_SHARE = 0.25
ALLOWED_GROWTH = 0.05


def campaign(workshop: Workshop, count: int) -> Outcome:
    """`count` runs of a few steps with a checkpoint, cached features among them, in one child."""
    noted = workshop.folder / "noted.txt"
    settings = workshop.settings("cycles")

    def before() -> None:
        from hftransfer import Recipe, finetune

        with noted.open("w") as file:
            for number in range(count):
                strategy = ("feature_extraction", "full", "lora", "gradual_unfreezing")[number % 4]
                values: dict[str, Any] = workshop.settings("cycles", strategy, overwrite=number > 0)
                values["optim"]["max_steps"] = 4
                finetune(Recipe(**values), train=ROWS, validation=ROWS[:11])
                file.write(f"{_resident_bytes()} {len(os.listdir('/proc/self/fd'))} {_threads()}\n")
                file.flush()

    child = workshop.run({**settings, "resume": "auto"}, within=CHILD_SECONDS * (1 + count / 20), before=before)
    figures = [tuple(map(int, line.split())) for line in noted.read_text().splitlines()]
    wrong = [] if len(figures) == count else [f"{len(figures)} cycles: {child.last_line()}"]
    start = figures[int(len(figures) * WARM_UP_SHARE)]
    end = figures[-1]
    growth = end[0] / start[0] - 1
    wrong += [f"memory grew by {growth:.1%}"] if growth >= ALLOWED_GROWTH else []
    wrong += [f"open files: {start[1]} -> {end[1]}"] if end[1] > start[1] else []
    wrong += [f"threads: {start[2]} -> {end[2]}"] if end[2] > start[2] else []
    return Outcome(
        f"resident memory {start[0] / 1e6:.0f} MB after {int(count * WARM_UP_SHARE)} cycles, "
        f"{end[0] / 1e6:.0f} MB after {count} ({growth:+.1%}); open files {start[1]} and {end[1]}, "
        f"threads {start[2]} and {end[2]}",
        wrong,
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))
