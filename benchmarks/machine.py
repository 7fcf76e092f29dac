"""What the machine is, and what else is running on it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKED_SHARE = 0.05
"""Samples during which other processes took more than this share of all processors are marked."""

MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Reading:
    """Processor seconds at one moment.

    Attributes:
        busy: Spent by everybody on all processors, time stolen by a hypervisor included.
        own: Spent by this process and the children that it has waited for.
        wall: The time.
    """

    busy: float
    own: float
    wall: float


def read_processors() -> Reading | None:
    """What the kernel has counted so far; None where there is no /proc."""
    try:
        system, own = Path("/proc/stat").read_text(), Path("/proc/self/stat").read_text()
    except FileNotFoundError:
        return None
    return parse_reading(system, own, os.sysconf("SC_CLK_TCK"), time.monotonic())


def parse_reading(system: str, own: str, ticks: int, wall: float) -> Reading:
    """A reading from the texts of /proc/stat and /proc/self/stat."""
    # user nice system idle iowait irq softirq steal; guest time is in user already.
    fields = [int(field) for field in system.splitlines()[0].split()[1:9]]
    busy = sum(fields) - fields[3] - fields[4]
    # The name in parentheses may hold blanks. Fields 14 to 17: utime stime cutime cstime.
    times = own.rpartition(")")[2].split()[11:15]
    return Reading(busy / ticks, sum(map(int, times)) / ticks, wall)


def others_share(before: Reading | None, after: Reading | None, processors: int) -> float | None:
    """The share of all processors that other processes took between two readings; None where nobody counted."""
    if before is None or after is None:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / (processors * max(after.wall - before.wall, 1e-9)))


def is_marked(share: float | None) -> bool:
    """Whether a sample was disturbed; one that nobody watched counts as disturbed."""
    return share is None or share > MARKED_SHARE


def describe() -> dict[str, Any]:
    """Processor, memory, system and GPU, for the report."""
    cpu = _proc_fields("/proc/cpuinfo")
    memory = _proc_fields("/proc/meminfo").get("MemTotal", "")
    flags = set(cpu.get("flags", "").split())
    return {
        "processor": cpu.get("model name", platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in MATRIX_FLAGS if flag in flags],
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "gpu": _gpu(),
    }


def computes_bf16() -> bool:
    """Whether the processor has matrix instructions for bf16, or there is a GPU; without, bf16 is emulated, slowly."""
    facts = describe()
    return facts["gpu"] is not None or any(flag.endswith("_bf16") for flag in facts["flags"])


def _proc_fields(path: str) -> dict[str, str]:
    """The `name : value` lines of a file in /proc, the first of each name."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    pairs = [line.partition(":")[::2] for line in reversed(lines) if ":" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def _gpu() -> str | None:
    """The GPU's name, None where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def revision() -> str | None:
    """The commit of this code, marked where files differ from it; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None
