"""Running hftransfer as users do: by its command line, and by a launcher on several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hftransfer.cli.main import main
from tests.ports import free_port

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


def torchrun(processes: int) -> list[str]:
    """The part of a command line that starts so many processes."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--master_addr", "127.0.0.1", "--master_port", str(free_port())]


def accelerate_launch(config: str) -> list[str]:
    """The part of a command line that starts two processes in fp32 with one of the configs that we ship."""
    given = ["--config_file", str(ROOT / "recipes" / "accelerate" / config), "--num_processes", "2"]
    given += ["--mixed_precision", "no", "--main_process_port", str(free_port())]
    return ["-m", "accelerate.commands.launch", *given]


def launched_environment(config: str) -> dict[str, str]:
    """What `accelerate_launch` would set in the environment of the processes that it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    line = [*accelerate_launch(config)[2:], "script.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(line))
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if os.environ.get(name) != value}


class Job(NamedTuple):
    """How often a script is to be forked, with which settings, and what is set in its environment."""

    processes: int
    settings: object
    environment: Mapping[str, str] = {}


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
    write_script(folder, script, settings)
    arguments = [*launcher, str(folder / "script.py"), str(folder / "settings.json")]
    return _run(folder, arguments, {"HFTRANSFER_CACHE": str(folder / "states"), **environment})


def fork_ranks(folder: Path, script: str, jobs: Mapping[Path, Job], **environment: str | None) -> str:
    """Run a script once for every job, each with a feature cache of its own, in ranks that one process forks.

    What a launcher does beside starting ranks is left out; where that matters, use `launch`.

    Args:
        folder: Where the list of jobs is written.
        script: As of `launch`.
        jobs: Working folder of a job -> the job.
        environment: As of `launch`, for all jobs.

    Returns:
        What was printed.
    """
    listed = []
    for place, job in jobs.items():
        write_script(place, script, job.settings)
        listed.append({"folder": str(place), "processes": job.processes, "environment": dict(job.environment)})
    (folder / "jobs.json").write_text(json.dumps(listed))
    return _run(folder, ["-m", "tests.forked_ranks", str(folder / "jobs.json")], environment)


def write_script(folder: Path, script: str, settings: object) -> None:
    """Write a script and its settings, as JSON."""
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "script.py").write_text(script)


def _run(folder: Path, arguments: Sequence[str], environment: Mapping[str, str | None]) -> str:
    """Run the interpreter with one thread, offline and without a GPU; what was printed."""
    known = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    finished = subprocess.run(
        [sys.executable, *arguments],
        env={name: value for name, value in known.items() if value is not None},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    return finished.stdout
