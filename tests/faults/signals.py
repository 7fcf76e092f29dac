"""SIGTERM, SIGINT and SIGUSR1 in the midst of every part of a run: saved, or nothing lost, and the same end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.workshop import Outcome, Workshop, differences, ended_as_asked, resumed_step

FAULT = "SIGTERM, SIGINT, SIGUSR1 in load, tokenisation, caching, training, saving, evaluation, final scoring, export"
FULL, SHORT = 3, 1
SHORT_PARTS = ("caching",)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TASK = "hftransfer.tasks.text_classification.TextClassificationTask"
# What is called in each part; which of its calls is hit; the least step that must be saved then.
PARTS: dict[str, tuple[str, int, int]] = {
    "load": ("hftransfer.models.load.check_differences", 1, 0),
    "tokenisation": ("hftransfer.training.prepare.encode_splits", 1, 0),
    "caching": ("hftransfer.caching.store.ShardWriter.append", 2, 0),
    "caching of a later stage": ("hftransfer.caching.cache.BoundaryCache._open", 2, 8),
    "training": ("hftransfer.training.loop.training_step", 8, 8),
    "saving": ("hftransfer.training.checkpoint_files._seal", 3, 6),
    # An evaluation has three passes: one each at the steps 4, 8, ... 32 and 33, and two after the training.
    "evaluation": (f"{TASK}.predictions", 2, 4),
    "final scoring": (f"{TASK}.predictions", 29, 33),
    "export": ("hftransfer.training.facts.save_model", 1, -1),
}


def campaign(workshop: Workshop, count: int) -> Outcome:
    """Every part with `count` of the signals; a run that has none of them set to save saves all the same."""
    wrong: list[str] = []
    reference = workshop.reference("gradual_unfreezing")
    stops, parts = 0, PARTS if count > SHORT else {name: PARTS[name] for name in SHORT_PARTS}
    for part, (place, call, least) in parts.items():
        for number in SIGNALS[:count]:
            name = f"{part.replace(' ', '-')}-{number.name}"
            every = 2 if part == "saving" else None
            settings = workshop.settings(name, "gradual_unfreezing", checkpoint_every=every, resume="auto")
            child = workshop.run(settings, before=plant(place, call, number))
            stops += 1
            if part == "export":
                # The run is as good as over: it comes to its end.
                wrong += [] if child.status == 0 else [f"{name}: status {child.status}"]
            else:
                wrong += [] if ended_as_asked(child) else [f"{name}: status {child.status}, {child.last_line()}"]
                wrong += [] if saved_step(Path(settings["output_dir"])) >= least else [f"{name}: too little saved"]
            again = workshop.run(settings)
            went_on = resumed_step(again)
            wrong += [] if least <= 0 or (went_on or 0) >= least else [f"{name}: went on at {went_on}"]
            ended = again.status == 0
            wrong += differences(reference, Path(settings["output_dir"])) if ended else [f"{name}: {again.last_line()}"]
    return Outcome(f"{stops} signals in {len(parts)} parts; {len(wrong)} lost something or ended otherwise", wrong)


def plant(place: str, call: int, number: signal.Signals) -> Callable[[], None]:
    """Send this process a signal in the n-th call of a function."""

    def before() -> None:
        import importlib

        module_name, _, attribute = place.rpartition(".")
        try:
            owner: Any = importlib.import_module(module_name)
        except ModuleNotFoundError:
            outer, _, name = module_name.rpartition(".")
            owner = getattr(importlib.import_module(outer), name)
        real, calls = getattr(owner, attribute), iter(range(1, 1_000_000))

        def signalled(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        setattr(owner, attribute, signalled)

    return before


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    found = sorted((run / "checkpoints").glob("step-*"))
    return int(json.loads((found[-1] / "state.json").read_text())["progress"]["step"]) if found else 0
