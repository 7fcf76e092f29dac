"""Every file of a checkpoint damaged in every way: found each time, named, and the checkpoint before it taken."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hftransfer.errors import TrainingError
from hftransfer.training import checkpoint_files
from tests.faults.workshop import Outcome, Workshop, differences, resumed_step

FAULT = "each checkpoint file truncated, emptied, missing, one bit flipped, swapped with another run's"
FULL, SHORT = 50, 3
NAMES = (*checkpoint_files.FILES, checkpoint_files.MANIFEST)


def campaign(workshop: Workshop, count: int) -> Outcome:
    """All damages, `count` flipped bits of each file; two whole runs go on from what is left."""
    wrong: list[str] = []
    reference = workshop.reference()
    settings = workshop.settings("damaged", keep_checkpoints=2)
    run = workshop.finished(settings)
    other = workshop.finished(workshop.settings("foreign", seed=14, keep_checkpoints=2))
    older, newest = sorted((run / "checkpoints").glob("step-*"))
    foreign = other / "checkpoints" / newest.name
    tried = found = 0
    for name in NAMES:
        for what, damage in damages(foreign, count):
            copy = shutil.copytree(newest, workshop.folder / "copies" / newest.name)
            damage(copy / name)
            tried += 1
            try:
                checkpoint_files.verify(copy)
            except TrainingError as error:
                found += 1
                wrong += [] if name in str(error) or name == checkpoint_files.MANIFEST else [f"{name} {what}: {error}"]
            else:
                wrong.append(f"{name} {what}: not found")
            shutil.rmtree(copy)
    # As a user meets it: the newest is named, the one before taken, the end the same.
    _flip(newest / NAMES[0], 0.5)
    child = workshop.run({**settings, "resume": "auto"})
    if resumed_step(child) != int(older.name.removeprefix("step-")) or f"{newest}: {NAMES[0]}" not in child.text():
        wrong.append(f"a damaged newest checkpoint: {child.last_line()}")
    wrong += differences(reference, run)
    return Outcome(f"{found} of {tried} found and named; the run went on from the one before, to the same end", wrong)


def damages(foreign: Path, flips: int) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Name and act of every damage; `foreign` is another run's checkpoint."""
    choose = random.Random("damages")
    yield "truncated", lambda path: path.write_bytes(path.read_bytes()[:-1])
    yield "halved", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    yield "emptied", lambda path: path.write_bytes(b"")
    yield "missing", Path.unlink
    yield "swapped", lambda path: shutil.copyfile(foreign / path.name, path)
    for number in range(flips):
        where = choose.random()
        yield f"bit flipped ({number})", lambda path, where=where: _flip(path, where)


def _flip(path: Path, where: float) -> None:
    """Flip one bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    position, bit = divmod(int(where * len(content) * 8), 8)
    content[position] ^= 1 << bit
    path.write_bytes(bytes(content))
