"""Ranks of a script as forks of one process: python -m tests.forked_ranks JOBS.

Loading torch and transformers takes longer than a tiny training, so it is done once for all ranks of all jobs. This
process loads them and does nothing else: one that has computed a gradient forks no others that could.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import hftransfer.finetuning  # noqa: F401 - loaded for the forks
from tests.ports import free_port


def run_rank(job: dict[str, Any], rank: int, port: int) -> None:
    """Run the script in this process, with what a launcher tells a rank."""
    os.environ.update(job["environment"])
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "LOCAL_WORLD_SIZE": job["processes"]}
    if job["processes"] > 1:
        os.environ.update({name: str(value) for name, value in ranks.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    folder = Path(job["folder"])
    # A feature cache of its own: no job finds what another left.
    os.environ["HFTRANSFER_CACHE"] = str(folder / "states")
    os.chdir(folder)
    sys.argv = [str(folder / "script.py"), str(folder / "settings.json")]
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_job(job: dict[str, Any]) -> bool:
    """Fork all ranks of a job and wait for them; whether all of them came to their end."""
    port, children = free_port(), []
    for rank in range(job["processes"]):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run_rank(job, rank, port)
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            # The others would wait for this one.
            for other in children:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return False
    return True


if __name__ == "__main__":
    sys.exit(not all(map(run_job, json.loads(Path(sys.argv[1]).read_text()))))
