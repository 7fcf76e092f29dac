"""What the rows share: tiny runs in forked processes, and the comparison of two runs.

A child is forked from a process that has imported everything and computed nothing, so that a run takes a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hftransfer.interruption import EXIT_STATUS
from tests.tiny_models import WORDS, write_tiny_checkpoint

ROWS = [
    {"text": " ".join(WORDS[index % 60 : index % 60 + 2 + index % 5]), "label": ("a", "b", "c")[index % 3]}
    for index in range(44)
]
STRATEGIES: dict[str, Any] = {
    "feature_extraction": "feature_extraction",
    "gradual_unfreezing": {"type": "gradual_unfreezing", "stages": 3},
    "full": "full_fine_tuning",
    "lora": {"type": "lora", "r": 2},
}
CHILD_SECONDS = 120
CRASHED = 70
# What a run did and how long it took, not what came out.
COSTS = ("seconds", "cache_")


@dataclass
class Outcome:
    """What a row has to tell.

    Attributes:
        figure: What came out, in a few words.
        wrong: Everything that should not have happened.
    """

    figure: str
    wrong: list[str] = field(default_factory=list)


@dataclass
class Child:
    """A forked run."""

    pid: int
    output: Path
    started: float
    status: int | None = None

    def wait(self, seconds: float = CHILD_SECONDS) -> int:
        """Its exit status; negative for the signal that ended it."""
        end = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a run took more than {seconds} s:\n{self.text()[-3000:]}")
            else:
                time.sleep(0.002)
        return self.status

    def kill_after(self, seconds: float) -> int:
        """Let it run so long, then kill it if it still runs; its exit status."""
        while time.monotonic() < self.started + seconds and self._runs():
            time.sleep(0.002)
        if self._runs():
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def _runs(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def text(self) -> str:
        """What it printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        """The last line that it printed."""
        return (self.text().strip().splitlines() or [""])[-1]


class Workshop:
    """A folder with a checkpoint and data, and the runs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = write_tiny_checkpoint(folder / "checkpoint", "bert", 0.1)
        self.children = 0
        self._references: dict[str, Path] = {}

    def settings(self, name: str, strategy: str = "full", **changes: Any) -> dict[str, Any]:
        """The recipe of a run in the folder of this name."""
        optim = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 3,
            "per_device_eval_batch_size": 4,
        }
        return {
            "checkpoint": str(self.checkpoint),
            "output_dir": str(self.folder / name),
            "strategy": STRATEGIES[strategy],
            "evaluation": {"every": 4, "keep": "best"},
            "checkpoint_every": 2,
            **changes,
            "optim": {**optim, **changes.get("optim", {})},
        }

    def start(
        self,
        settings: Mapping[str, Any],
        *,
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
        rows: list[dict[str, str]] | None = None,
    ) -> Child:
        """Start a run as `hftransfer run` would: one line and a status for what its user can mend.

        Args:
            settings: Of its recipe.
            before: Called in the child first, to plant a fault.
            environment: Set in the child.
            rows: Training examples in place of the usual ones.
        """
        from hftransfer import Recipe, finetune
        from hftransfer.cli.main import guarded
        from hftransfer.training import loop

        self.children += 1
        output = self.folder / f"output-{self.children}.txt"
        pid = os.fork()
        if pid:
            return Child(pid, output, time.monotonic())
        status = CRASHED
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            _own_progress_lock()
            os.environ.update({"HFTRANSFER_CACHE": f"{settings['output_dir']}-states", **(environment or {})})
            loop.LOG_EVERY = 3
            if before is not None:
                before()
            data = ROWS if rows is None else rows
            status = guarded(lambda: finetune(Recipe(**settings), train=data, validation=ROWS[:11], test=ROWS[11:20]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def reference(self, strategy: str = "full") -> Path:
        """The run of a strategy that nothing interrupts; made once."""
        if strategy not in self._references:
            self._references[strategy] = self.finished(self.settings(f"{strategy}-whole", strategy))
        return self._references[strategy]

    def seconds(self, strategy: str) -> float:
        """How long such a run takes, from the fork to its end."""
        started = time.monotonic()
        self.finished(self.settings(f"{strategy}-timed", strategy))
        return time.monotonic() - started

    def run(self, settings: Mapping[str, Any], within: float = CHILD_SECONDS, **options: Any) -> Child:
        """Start a run and wait for its end, so many seconds at most."""
        child = self.start(settings, **options)
        child.wait(within)
        return child

    def finished(self, settings: Mapping[str, Any], **options: Any) -> Path:
        """The folder of a run that has to succeed."""
        child = self.run(settings, **options)
        assert child.status == 0, child.text()[-4000:]
        return Path(settings["output_dir"])


def _own_progress_lock() -> None:
    """Forks share the lock of their parent's progress bars, and one that is killed may hold it for ever."""
    lock, kinds = threading.RLock(), [tqdm]
    for kind in kinds:
        kind.set_lock(lock)
        kinds += kind.__subclasses__()


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs, times and costs apart."""
    found = []
    for part, content in (("weights", weights), ("metrics", metrics), ("log", log)):
        if content(one) != content(other):
            found.append(f"{other.name}: other {part} than {one.name}")
    return found


def weights(run: Path) -> dict[str, bytes]:
    """The bytes of every tensor of the model."""
    from safetensors.torch import load_file

    return {
        f"{path.name} {name}": tensor.numpy().tobytes()
        for path in sorted((run / "model").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def metrics(run: Path) -> dict[str, Any]:
    """Scores and counts."""
    found = json.loads((run / "metrics.json").read_text())
    found["training"] = {
        name: value for name, value in found["training"].items() if not any(cost in name for cost in COSTS)
    }
    return dict(found)


def log(run: Path) -> list[dict[str, Any]]:
    """The records without their times."""
    return [{**json.loads(line), "time": 0} for line in (run / "log.jsonl").read_text().splitlines()]


def resumed_step(child: Child) -> int | None:
    """Where a run went on, None if it did not."""
    lines = [line for line in child.text().splitlines() if "resumed at step" in line]
    return int(lines[-1].rsplit(" ", 1)[-1]) if lines else None


def ended_as_asked(child: Child) -> bool:
    """Whether a run ended with the status of a signal, in one line without a traceback."""
    return child.status == EXIT_STATUS and "Traceback" not in child.text() and "interrupted by" in child.last_line()


def refused(child: Child) -> bool:
    """Whether a run ended with status 2 in one line without a traceback."""
    text = child.text()
    return child.status == 2 and "Traceback" not in text and child.last_line().startswith("error: ")
