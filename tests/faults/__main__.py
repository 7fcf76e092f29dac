"""Run rows of the table and print them as Markdown; status 1 if anything went wrong."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIVEN = dict(os.environ)
# Before torch is imported: one thread, offline, fp32, whatever the machine could do.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    ACCELERATE_MIXED_PRECISION="no",
    CUDA_VISIBLE_DEVICES="",
)

ALONE = ("bad_configs", "bad_data", "planted", "cache_kills", "concurrent", "canary", "offline")
"""Rows that set up a process of their own, each with one call and in full."""


def rows() -> dict[str, object]:
    """The modules of this package that are rows, by name, less those that run alone."""
    package = importlib.import_module("tests.faults")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith(("_", "test_")) and info.name not in ALONE:
            module = importlib.import_module(f"tests.faults.{info.name}")
            if hasattr(module, "FAULT"):
                found[info.name] = module
    return found


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", action="append", help="only this row; may be given several times")
    parser.add_argument("--count", type=int, help="how often, in place of the row's full count")
    parser.add_argument("--short", action="store_true", help="a few of each")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    arguments = parser.parse_args()
    known = rows()
    unknown = set(arguments.row or ()) - {*known, *ALONE}
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join((*known, *ALONE))}")
    chosen = arguments.row or [*known, *(() if arguments.short else ALONE)]
    print("| fault | what came out | wrong | seconds |\n|---|---|---|---|", flush=True)
    wrong = _forked_rows({name: known[name] for name in chosen if name in known}, arguments)
    wrong += sum(_row_alone(name) for name in chosen if name in ALONE)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    return 1 if wrong else 0


def _row_alone(name: str) -> bool:
    """Run a row that prints itself; whether anything went wrong, which stands in its lines above."""
    started = time.perf_counter()
    command = [sys.executable, "-m", f"tests.faults.{name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=GIVEN)
    *above, row = done.stdout.strip().splitlines() or [f"| {name} | nothing was printed |"]
    print(*above, sep="\n", end="\n" if above else "", file=sys.stderr, flush=True)
    verdict = "see above" if done.returncode else "0"
    print(f"{row} {verdict} | {time.perf_counter() - started:.0f} |", flush=True)
    return done.returncode != 0


def _forked_rows(chosen: dict[str, object], arguments: argparse.Namespace) -> int:
    """Run rows whose runs are forks of this process; how much went wrong."""
    if not chosen:
        return 0
    _warm_up()
    from tests.faults.workshop import Outcome, Workshop

    wrong, folder = 0, arguments.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    workshop = Workshop(folder)
    for name, row in chosen.items():
        count = arguments.count or (row.SHORT if arguments.short else row.FULL)  # type: ignore[attr-defined]
        if not count:
            continue
        started = time.perf_counter()
        outcome: Outcome = row.campaign(workshop, count)  # type: ignore[attr-defined]
        seconds = time.perf_counter() - started
        print(f"| {row.FAULT} | {outcome.figure} | {len(outcome.wrong)} | {seconds:.0f} |", flush=True)  # type: ignore[attr-defined]
        for line in outcome.wrong:
            print(f"WRONG in {name}: {line}", file=sys.stderr, flush=True)
        wrong += len(outcome.wrong)
    if arguments.keep is None:
        shutil.rmtree(folder)
    return wrong


def _warm_up() -> None:
    """Import all that a run imports, and compute nothing: a fork after the first gradient could compute none."""
    import peft
    import transformers.models.bert.modeling_bert  # noqa: F401

    import hftransfer.finetuning
    from tests.tiny_models import tiny_classifier, tiny_tokenizer

    tiny_classifier("bert")
    tiny_tokenizer("bert")
    assert peft.LoraConfig
    assert hftransfer.finetuning.finetune


if __name__ == "__main__":
    sys.exit(main())
