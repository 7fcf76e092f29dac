"""One planted attack: what is planted, what hftransfer does with it, and the same without protection."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftransfer.errors import UserError

SPARE_BYTES, PATIENCE = 3 << 30, 20.0
"""What an unprotected run may take beyond what this process has, in bytes and seconds: more is a bomb that went off."""
MAX_SECONDS, MAX_GROWTH = 10.0, 400 << 20
"""What a protected run may take, in seconds of the processor and in bytes of memory."""

Action = Callable[[], Any]


@dataclass(frozen=True)
class Attack:
    """An attack by name.

    Attributes:
        name: What it is.
        plant: Writes it below a folder; given the path of the canary, a file that appears (or is left in ruins) when
            the attack works. Returns what hftransfer does, and what an unprotected program would do.
    """

    name: str
    plant: Callable[[Path, Path], tuple[Action, Action]]


@dataclass(frozen=True)
class Outcome:
    """What became of an attack.

    Attributes:
        fired: Whether it worked.
        verdict: The refusal, or "harmless" where the rest was used without it.
        seconds: How long that took.
    """

    fired: bool
    verdict: str
    seconds: float


def protected(attack: Attack, folder: Path) -> tuple[Outcome, Action, Path]:
    """Plant an attack and let hftransfer meet it; also the unprotected action and the canary."""
    folder.mkdir(parents=True)
    canary = folder / "canary"
    action, control = attack.plant(folder / "planted", canary)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = "harmless"
    try:
        action()
    except UserError as refusal:
        verdict = str(refusal)
        assert "\n" not in verdict
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return Outcome(canary.exists() or grown > MAX_GROWTH or seconds > MAX_SECONDS, verdict, seconds), control, canary


def unprotected(control: Action, canary: Path) -> bool:
    """Whether the attack works where nothing stands against it: in a child that may die of it."""
    child = multiprocessing.get_context("fork").Process(target=_run, args=(control,))
    child.start()
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        child.join()
        return True
    return canary.exists() or child.exitcode == OUT_OF_MEMORY or (child.exitcode or 0) < 0


OUT_OF_MEMORY = 77


def _run(control: Action) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))
    try:
        control()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except RuntimeError as error:
        os._exit(OUT_OF_MEMORY if "memory" in str(error) else 1)
    except BaseException:
        os._exit(1)
    os._exit(0)
