"""Two processes: one is killed, one is asked to end, and their run goes on with one process or two."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.signals import plant
from tests.faults.workshop import (
    ROWS,
    Child,
    Outcome,
    Workshop,
    differences,
    ended_as_asked,
    log,
    resumed_step,
)
from tests.ports import free_port
from tests.running import ROOT, torchrun, write_rows
from tests.tiny_models import write_tiny_checkpoint

FAULT = "one of two ranks killed under torchrun; one of two asked to end; resumed on 1 process after 2 and 2 after 1"
FULL, SHORT = 10, 1
ALLOWED_SECONDS = 30.0
# What two processes and one may differ by: the order in which floating-point numbers are added.
NOISE = 1e-4
STRATEGIES = ("full", "gradual_unfreezing", "lora", "feature_extraction")
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from hftransfer import Recipe, finetune
from hftransfer.cli.main import guarded
from hftransfer.training import loop

settings, die_at = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
rank = os.environ["RANK"]
Path(sys.argv[1]).with_name(f"pid-{rank}").write_text(str(os.getpid()))
step = loop.training_step


def dying(*args, **kwargs):
    if rank == "1" and kwargs["step"] == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)


loop.training_step, loop.LOG_EVERY = dying, 3
rows = [json.loads(line) for line in Path(sys.argv[1]).with_name("rows.jsonl").read_text().splitlines()]
sys.exit(guarded(lambda: finetune(Recipe(**settings), train=rows, validation=rows[:11], test=rows[11:20])))
"""


def campaign(workshop: Workshop, count: int) -> Outcome:
    """`count` ranks are killed under torchrun; the other faults in all strategies. One of each in the short form."""
    wrong: list[str] = []
    longest, killed = 0.0, 0
    for number in range(count if count > SHORT else 0):
        longest = max(longest, _kill_one(workshop, STRATEGIES[number % len(STRATEGIES)], number, wrong))
        killed += 1
    asked = 1
    for strategy in STRATEGIES if count > SHORT else ():
        asked += _ask_one(workshop, strategy, wrong)
    largest = _change_number(workshop, count, wrong)
    killed_part = f"{killed} ranks killed, all gone after at most {longest:.1f} s; " if killed else ""
    return Outcome(
        f"{killed_part}{asked} ranks asked to end, both saved; every resumed run ends as the uninterrupted one; "
        f"after a change of the number of processes losses differ by at most {largest:.0e}",
        wrong,
    )


def start_ranks(workshop: Workshop, settings: dict[str, Any], **options: Any) -> list[Child]:
    """Two processes of one run, as a launcher starts them."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, second = options.pop("first", {}), options.pop("second", {})
    return [
        workshop.start(settings, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **special)
        for rank, special in enumerate((first, second))
    ]


def finished_ranks(workshop: Workshop, settings: dict[str, Any]) -> Path:
    """The folder of a run of two processes that has to succeed."""
    children = start_ranks(workshop, settings)
    assert [child.wait() for child in children] == [0, 0], "\n".join(child.text()[-3000:] for child in children)
    return Path(settings["output_dir"])


def _finished_on(workshop: Workshop, settings: dict[str, Any], processes: int) -> Path:
    return finished_ranks(workshop, settings) if processes == 2 else workshop.finished(settings)


def _ask_one(workshop: Workshop, strategy: str, wrong: list[str]) -> int:
    """Signal one rank, in a step and in an evaluation: both save and end alike."""
    reference = finished_ranks(workshop, workshop.settings(f"{strategy}-two", strategy))
    places = [("step", "hftransfer.training.loop.training_step", 7, "second", 7)]
    places += [("evaluation", "hftransfer.training.loop.predict", 2, "first", 4)]
    for name, place, call, which, least in places:
        settings = workshop.settings(f"{strategy}-{name}", strategy, checkpoint_every=None, resume="auto")
        children = start_ranks(workshop, settings, **{which: {"before": plant(place, call, signal.SIGTERM)}})
        for child in children:
            child.wait()
            wrong += [] if ended_as_asked(child) else [f"{strategy} {name}: {child.status}, {child.last_line()}"]
        again = start_ranks(workshop, settings)
        if [child.wait() for child in again] != [0, 0] or (resumed_step(again[0]) or 0) < least:
            wrong.append(f"{strategy} {name}: did not go on: {again[0].last_line()}")
        else:
            wrong += differences(reference, Path(settings["output_dir"]))
    return len(places)


def _change_number(workshop: Workshop, count: int, wrong: list[str]) -> float:
    """Stop a run of two processes and go on with one, and the other way round; the largest difference of a loss."""
    plain = str(write_tiny_checkpoint(workshop.folder / "no-dropout", "bert", 0.0))
    stop = {"before": plant("hftransfer.training.loop.training_step", 7, signal.SIGTERM)}
    found = 0.0
    for name, before, after in (("two-then-one", 2, 1), ("one-then-two", 1, 2))[:count]:
        whole = _finished_on(workshop, workshop.settings(f"{name}-whole", checkpoint=plain), before)
        settings = workshop.settings(name, checkpoint=plain, resume="auto")
        for processes, options in ((before, stop), (after, {})):
            children = (
                start_ranks(workshop, settings, second=options)
                if processes == 2
                else [workshop.start(settings, **options)]
            )
            for child in children:
                child.wait()
            if options:
                wrong += [f"{name}: {child.last_line()}" for child in children if not ended_as_asked(child)]
        if children[0].status != 0 or f"processes: {before} -> {after}" not in children[0].text():
            wrong.append(f"{name}: {children[0].status}, {children[0].last_line()}")
            continue
        run = Path(settings["output_dir"])
        pairs = zip(*([record for record in log(folder) if "loss" in record] for folder in (whole, run)), strict=True)
        found = max(found, *(abs(one["loss"] - other["loss"]) for one, other in pairs))
        events = [record for record in log(run) if "event" in record]
        wrong += [] if len(events) == 1 else [f"{name}: the change is not recorded"]
    wrong += [f"losses differ by {found}"] if found > NOISE else []
    return found


def _kill_one(workshop: Workshop, strategy: str, number: int, wrong: list[str]) -> float:
    """Kill a rank at a random step under torchrun; seconds until every process is gone."""
    import json

    name = f"killed-{number}"
    folder = workshop.folder / f"torchrun-{number}"
    folder.mkdir()
    write_rows(folder / "rows.jsonl", ROWS)
    settings = workshop.settings(name, strategy, resume="auto")
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "script.py").write_text(SCRIPT)
    reference = finished_ranks(workshop, workshop.settings(f"{name}-whole", strategy))
    die_at = random.Random(f"rank {number}").randrange(3, 33)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HFTRANSFER_CACHE": f"{settings['output_dir']}-states"}
    arguments = [str(folder / "script.py"), str(folder / "settings.json"), str(die_at)]
    with (folder / "output.txt").open("w") as output:
        launcher = subprocess.Popen(
            [sys.executable, *torchrun(2), *arguments], stdout=output, stderr=output, env=environment, cwd=folder
        )
        pids = [folder / "pid-0", folder / "pid-1"]
        while launcher.poll() is None and not (pids[1].exists() and not _alive(int(pids[1].read_text() or 0))):
            time.sleep(0.02)
        died = time.monotonic()
        try:
            launcher.wait(ALLOWED_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()
            wrong.append(f"{name}: the launcher was still there after {ALLOWED_SECONDS:.0f} s")
    seconds = time.monotonic() - died
    for path in pids:
        if _alive(int(path.read_text())):
            wrong.append(f"{name}: {path.name} is an orphan")
    if finished_ranks(workshop, settings):
        wrong += differences(reference, Path(settings["output_dir"]))
    return seconds


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
