"""Running hftransfer as users do: by its command line, and by a launcher on several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hftransfer.cli.main import main

ROOT = Path(__file__).parents[1]
LAUNCH_SECONDS = 280


def command(*arguments: object) -> Any:
    """The exit status of `hftransfer ARGUMENTS`, in this process."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code


def flags(settings: Mapping[str, object]) -> list[object]:
    """Dotted names and values as flags, the last value of a name alone; keyword arguments have `__` for the dot."""
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return [part for name, value in dotted.items() for part in (f"--{name}", value)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def torchrun(processes: int) -> list[str]:
    """The part of a command line that starts so many processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(free_port())]


def launch(folder: Path, launcher: Sequence[str], script: str, settings: object, **environment: str | None) -> str:
    """Run a script under a launcher, with a feature cache of its own.

    Args:
        folder: Gets script and settings, and is the working folder.
        launcher: As `torchrun` gives it.
        script: Python, which finds the path of the settings in `sys.argv[1]`.
        settings: Written as JSON.
        environment: Set in addition; None removes a variable.

    Returns:
        What was printed.
    """
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "script.py").write_text(script)
    known = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HFTRANSFER_CACHE": str(folder / "states"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    finished = subprocess.run(
        [sys.executable, *launcher, str(folder / "script.py"), str(folder / "settings.json")],
        env={name: value for name, value in known.items() if value is not None},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    return finished.stdout
