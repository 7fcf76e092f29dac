"""Signals that ask a run to end: SIGTERM and SIGINT, and SIGUSR1, which schedulers send ahead of time.

The first one asks: where nothing can be lost the run ends at once, elsewhere it goes on to a place where it can be
saved. A second one ends the process, in a notebook the cell. Nothing here imports torch, so that a run listens before
its libraries are loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
EXIT_STATUS = 75
"""Exit status of a run that was asked to end: EX_TEMPFAIL of sysexits.h, "try again"."""

# A launcher passes on a signal that its workers have had already, with their process group: within this time the second
# one is no second wish.
REPEATED_SECONDS = 5.0


class Interrupted(KeyboardInterrupt):
    """A run was asked to end. Its message says what was saved and how to go on.

    It is no `Exception`, so that nobody takes it for a failure of what was being done.
    """


@dataclass
class _State:
    """What this process was told; signals belong to the process, so there is one of it."""

    watching: bool = False
    number: int | None = None
    since: float = 0.0
    held: int = 0


_state = _State()


@contextmanager
def watched() -> Iterator[None]:
    """Listen to the signals as long as the context lasts; inside another one, or off the main thread, do nothing.

    Raises:
        Interrupted: On a signal, from wherever the process is, unless it is `held`.
    """
    if _state.watching or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, _on_signal) for number in numbers}
    _state.watching = True
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _state.watching, _state.number, _state.held = False, None, 0


@contextmanager
def held() -> Iterator[None]:
    """Let signals wait until `stop_if_requested` is asked: the context holds what must not be lost."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held = max(0, _state.held - 1)


def requested() -> bool:
    """Whether this process was asked to end."""
    return _state.number is not None


def stop_if_requested() -> None:
    """End here if this process was asked to.

    Raises:
        Interrupted: If it was.
    """
    if requested():
        raise Interrupted(f"interrupted by {name()}")


def stop_if_any_requested(accelerator: Accelerator | None) -> None:
    """As `stop_if_requested`, for all processes alike; collective, where there are several.

    Raises:
        Interrupted: If one of them was asked to end.
    """
    if accelerator is None or accelerator.num_processes == 1:
        stop_if_requested()
        return
    import torch

    asked = torch.tensor(float(requested()), device=accelerator.device)
    if float(accelerator.reduce(asked, "sum")) > 0:
        raise Interrupted(f"interrupted by {name()}")


def name() -> str:
    """The signal that came."""
    return "a signal to another process" if _state.number is None else signal.Signals(_state.number).name


def _on_signal(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _state.number is not None:
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if number == signal.SIGINT and hasattr(sys, "ps1"):
            # In a notebook or at a prompt the process holds more than this run.
            raise KeyboardInterrupt
        if not launched or now - _state.since > REPEATED_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _state.number, _state.since = number, now
    if not _state.held:
        raise Interrupted(f"interrupted by {name()} before the first step: nothing is lost")
