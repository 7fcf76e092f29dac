"""SIGKILL at random moments: the run that was killed again and again ends as the one that ran through."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path

from tests.faults.workshop import STRATEGIES, Outcome, Workshop, differences, resumed_step

FAULT = "SIGKILL at random moments of feature_extraction, gradual_unfreezing, full, lora"
FULL, SHORT = 100, 1
# Kills of one run before it is left to come to its end.
KILLS_PER_RUN = 4


def campaign(workshop: Workshop, count: int) -> Outcome:
    """`count` kills of each strategy, and as many more as it takes for 80 % real mid-run resumes."""
    wrong: list[str] = []
    parts = []
    for strategy in STRATEGIES if count > SHORT else ("gradual_unfreezing",):
        kills, resumes, runs = _strategy(workshop, strategy, count, wrong)
        parts.append(f"{strategy} {kills} kills, {resumes} mid-run resumes in {runs} runs")
    return Outcome(f"{'; '.join(parts)}; {len(wrong)} differ from the uninterrupted run", wrong)


def _strategy(workshop: Workshop, strategy: str, count: int, wrong: list[str]) -> tuple[int, int, int]:
    choose = random.Random(f"kills {strategy}")
    reference = workshop.reference(strategy)
    seconds = workshop.seconds(strategy)
    tally: Counter[str] = Counter()
    while tally["kills"] < count or tally["resumes"] < 0.8 * count:
        tally["runs"] += 1
        again = workshop.settings(f"{strategy}-{tally['runs']}", strategy, resume="auto")
        for attempt in range(KILLS_PER_RUN + 1):
            child = workshop.start(again)
            if attempt < KILLS_PER_RUN:
                child.kill_after(choose.uniform(0.2, 1.0) * seconds)
            status = child.wait()
            step = resumed_step(child)
            tally["resumes"] += int(step is not None and step > 0)
            if status == 0:
                # The machine has other work at times: a run that got away says how long one takes now.
                seconds = min(seconds, time.monotonic() - child.started) if attempt == 0 else seconds
                break
            if status != -9:
                wrong.append(f"{strategy}: status {status}: {child.last_line()}")
                break
            tally["kills"] += 1
        if status == 0:
            wrong += differences(reference, Path(again["output_dir"]))
        if not wrong:
            shutil.rmtree(again["output_dir"])
            shutil.rmtree(f"{again['output_dir']}-states", ignore_errors=True)
    return tally["kills"], tally["resumes"], tally["runs"]
