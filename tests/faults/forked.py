"""A case of a fault campaign in a process of its own: what it printed, how it ended, its time and its memory."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        status: Exit status; minus the signal's number if one ended it.
        out: Standard output.
        error: Standard error.
        seconds: What it took of the processor, whatever else the machine does.
        memory: Bytes that it took at most beyond what the parent held.
    """

    status: int
    out: str
    error: str
    seconds: float
    memory: int


def forked(action: Callable[[], Any], *, seconds: int, memory: int) -> Outcome:
    """Run an action in a fork of this process, with bounds on its time and its address space.

    The parent must not have started threads: import libraries before, but do not use them.

    Args:
        action: What to run; `SystemExit` gives the status.
        seconds: After these it is killed.
        memory: Bytes of address space that it may have beyond its parent's.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
            signal.alarm(seconds)
            bound = _size("VmSize") + memory
            resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
            resident = _size("VmRSS")
            os._exit(_status(action, resident))
        _, result, usage = os.wait4(child, 0)
        texts = []
        for stream in (out, error):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    lines = texts[1].splitlines()
    resident = int(lines.pop().split()[1]) if lines and lines[-1].startswith("resident ") else 0
    status = os.waitstatus_to_exitcode(result)
    error_text = "".join(f"{line}\n" for line in lines)
    return Outcome(status, texts[0], error_text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 - resident)


def _status(action: Callable[[], Any], resident: int) -> int:
    """The exit status of an action; the last line on the error stream says what memory it began with."""
    status = 0
    try:
        action()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"resident {resident}", file=sys.stderr, flush=True)
    return status


def _size(name: str) -> int:
    """Bytes of this process, by the name that the system gives them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder for as long as the context lasts."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
