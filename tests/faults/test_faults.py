"""A few faults of every kind; `python -m tests.faults` plants them all and prints the table of docs/faults.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_few_faults_of_every_kind(tmp_path: Path) -> None:
    # A process of its own: one that has computed a gradient forks no others that could.
    command = [sys.executable, "-m", "tests.faults", "--short", "--keep", str(tmp_path)]
    # As for most users, what goes to a file or a pipe is kept back until there is much of it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) >= 5
    assert all(line.split(" | ")[2] == "0" for line in table[1:]), done.stdout
