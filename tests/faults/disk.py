"""A full disk, at the checkpoint, in the feature cache, at the export: one line, and the last good checkpoint loads.

A file system of 3 MB where one can be mounted, and a limit on the size of a file (RLIMIT_FSIZE) everywhere.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.faults.workshop import Child, Outcome, Workshop, differences, refused, resumed_step

FAULT = "disk full, on a 3 MB file system and by RLIMIT_FSIZE, at checkpoint, cache, export"
FULL, SHORT = 1, 0
ROOM = 3 << 20


def campaign(workshop: Workshop, count: int) -> Outcome:
    """Limits on files everywhere, and the small file system where one can be mounted."""
    wrong: list[str] = []
    reference = workshop.reference("gradual_unfreezing")
    done = []
    for part in ("checkpoint", "cache", "export"):
        done.append(f"{part} by RLIMIT_FSIZE")
        _limited(workshop, part, reference, wrong)
    done += _small_disk(workshop, wrong)
    return Outcome(f"{', '.join(done)}: one line each, then the same end; {len(wrong)} otherwise", wrong)


def _limited(workshop: Workshop, part: str, reference: Path, wrong: list[str]) -> None:
    """A file may not grow beyond some bytes from a moment on."""
    settings = workshop.settings(part, "gradual_unfreezing", resume="auto")
    places = {
        "checkpoint": ("hftransfer.training.loop", "training_step", 8),
        "export": ("hftransfer.training.facts", "save_model", 1),
    }
    before = _limit_while_caching if part == "cache" else lambda: _limit_from(*places[part])
    child = workshop.run(settings, before=before)
    if part == "cache":
        # States that cannot be stored are computed again: the run goes on and says so.
        if child.status != 0 or "cannot be stored and are recomputed" not in child.text():
            wrong.append(f"cache: status {child.status}, {child.last_line()}")
        return
    _then_goes_on(workshop, settings, child, reference, part, wrong)


def _then_goes_on(
    workshop: Workshop, settings: dict[str, Any], child: Child, reference: Path, part: str, wrong: list[str]
) -> None:
    if not refused(child):
        wrong.append(f"{part}: status {child.status}, {child.last_line()}")
    if list(Path(settings["output_dir"]).rglob("*.writing*")):
        wrong.append(f"{part}: something half-written is left")
    again = workshop.run(settings)
    if again.status != 0 or not resumed_step(again):
        wrong.append(f"{part}: did not go on: {again.last_line()}")
    else:
        wrong += differences(reference, Path(settings["output_dir"]))


def _limit_from(module_name: str, name: str, call: int) -> None:
    """Limit the size of files from the n-th call of a function on."""
    import importlib

    module = importlib.import_module(module_name)
    real, calls = getattr(module, name), iter(range(1, 1_000_000))

    def limiting(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return real(*args, **kwargs)

    setattr(module, name, limiting)


def _limit_while_caching() -> None:
    """Limit the size of files while states are encoded, and then alone."""
    from hftransfer.caching.cache import BoundaryCache

    real = BoundaryCache._encode

    def limited(*args: Any, **kwargs: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, resource.RLIM_INFINITY))
        try:
            return real(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    BoundaryCache._encode = limited  # type: ignore[method-assign]


def _small_disk(workshop: Workshop, wrong: list[str]) -> list[str]:
    """A file system of 3 MB: too small from the start, or filled up by somebody else in the midst of the run."""
    disk = workshop.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        return []
    try:
        filler = disk / "filler"
        reference = workshop.reference()
        for part, call in (("checkpoint on 3 MB", 8), ("export on 3 MB", -1)):
            settings = workshop.settings(f"disk/{part.split()[0]}", resume="auto")
            _then_goes_on_after(workshop, settings, filler, call, reference, wrong)
            shutil.rmtree(settings["output_dir"])
        filler.write_bytes(b"x" * (ROOM - (64 << 10)))
        child = workshop.run(workshop.settings("disk/none"))
        if not refused(child) or (disk / "none").exists():
            wrong.append(f"too little room from the start: status {child.status}, {child.last_line()}")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return ["checkpoint and export on 3 MB", "refused beforehand on 3 MB"]


def _then_goes_on_after(
    workshop: Workshop, settings: dict[str, Any], filler: Path, call: int, reference: Path, wrong: list[str]
) -> None:
    """Fill the disk at a step, or before the export; then empty it."""

    def before() -> None:
        from hftransfer.training import facts, loop, state

        owner, name = (loop, "training_step") if call > 0 else (facts, "save_model")
        real, calls = getattr(owner, name), iter(range(1, 1_000_000))
        # Not asked whether there is room: the write itself shall fail.
        state.check_room = lambda *_: None

        def filling(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == max(1, call):
                _fill(filler)
            return real(*args, **kwargs)

        setattr(owner, name, filling)

    child = workshop.run(settings, before=before)
    filler.unlink(missing_ok=True)
    _then_goes_on(workshop, settings, child, reference, settings["output_dir"], wrong)


def _fill(filler: Path) -> None:
    """Write until nothing is left."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return
