"""What a command's start spends on imports, beside the imports of a script with transformers' Trainer.

    python -m benchmarks.profile_start --repeats 5

Prints a Markdown table: seconds by library, each charged with its own modules and what they import of packages that
are not listed (sympy, which torch's compiler imports, is torch's). Both sides are imported in turns, in interpreters of
their own, under `python -X importtime`, which makes either of them somewhat slower.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections import Counter, defaultdict

from benchmarks.machine import describe
from benchmarks.stats import interleaved

SIDES = {
    "hftransfer run": "hftransfer.cli.main, hftransfer.finetuning",
    "the Trainer's script": "benchmarks.contestants.glue_script",
}
# What belongs to a side itself and is not one of its libraries.
OWN = ("hftransfer", "benchmarks")
SHOWN = ("torch", "transformers", "datasets", "pandas", "evaluate", "accelerate")


def charged(log: str) -> dict[str, float]:
    """Seconds by library, from what `-X importtime` writes.

    A module comes after those that it imports, which are indented by two more spaces. Read backwards, every line has
    its importers above it, and is charged to the innermost of them that is listed.
    """
    found: Counter[str] = Counter()
    importers: list[str] = []
    lines = [line.removeprefix("import time:").split("|") for line in log.splitlines() if line.count("|") == 2]
    for own_microseconds, _, name in reversed([parts for parts in lines if parts[0].strip().isdigit()]):
        depth = (len(name) - len(name.lstrip()) - 1) // 2
        importers[depth:] = [name.strip()]
        roots = [one.split(".")[0] for one in importers]
        library = next((root for root in reversed(roots) if root in SHOWN), "the rest")
        found["own modules" if roots[-1] in OWN else library] += int(own_microseconds) / 1e6
    return dict(found)


def main() -> None:
    """Import both sides in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    samples: dict[str, dict[str, list[float]]] = {side: defaultdict(list) for side in SIDES}
    # The first round reads the files from the disk, and does not count.
    for number, order in enumerate(interleaved(list(SIDES), repeats + 1)):
        for side in order:
            command = [sys.executable, "-X", "importtime", "-c", f"import {SIDES[side]}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            parts = charged(done.stderr)
            for name in (*SHOWN, "own modules", "the rest") if number else ():
                samples[side][name].append(parts.get(name, 0.0))
            if number:
                samples[side]["together"].append(sum(parts.values()))
    machine = describe()
    print(f"\nMachine: {machine['processor']}, {machine['cores']} cores; medians of {repeats} (lowest to highest).\n")
    print(f"| seconds for importing | {' | '.join(SIDES)} |\n|---|{'---|' * len(SIDES)}")
    for name in (*SHOWN, "own modules", "the rest", "together"):
        cells = [
            f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})"
            for one in (samples[side][name] for side in SIDES)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
