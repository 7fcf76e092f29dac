"""What a training tells: a progress bar, `log.jsonl` and the user's trackers. Only the main process speaks."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hftransfer.recipe import Recipe
from hftransfer.redaction import redact, redact_values
from hftransfer.safety.files import replacing
from hftransfer.training.carbon import other_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_FILE = "log.jsonl"


class RunLog:
    """Progress of one training. Use it as a context manager."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, folder: Path, total_steps: int) -> None:
        self.accelerator, self.recipe, self.path, self.total_steps = accelerator, recipe, folder / LOG_FILE, total_steps
        self.trackers = other_trackers(recipe.trackers)
        # Of the steps since the last record.
        self.loss_sum, self.loss_count = 0.0, 0

    def __enter__(self) -> RunLog:
        self.bar: Any = tqdm(
            total=self.total_steps,
            unit="step",
            dynamic_ncols=True,
            # Written to a file, a bar that is drawn ten times a second buries everything else.
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
            disable=not self.accelerator.is_main_process,
        )
        if self.trackers:
            self.accelerator.init_trackers(
                "hftransfer", config=redact_values(_flat(self.recipe.model_dump(mode="json")))
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.trackers:
            self.accelerator.end_training()

    def say(self, line: str) -> None:
        """Print a line above the progress bar, at once: what goes to standard error must not overtake it in a file.

        Nothing is printed of an empty one.
        """
        if line and self.accelerator.is_main_process:
            self.bar.write(line)
            sys.stdout.flush()

    def rewind(self, step: int) -> None:
        """Drop the records after a step that the training goes back to, and a line that a kill cut short."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def add_loss(self, loss: float) -> None:
        """Add a step's loss to the running mean."""
        self.loss_sum += loss
        self.loss_count += 1

    def step(self, step: int, epoch: float, rate: float, stage: str, *, due: bool) -> None:
        """Advance the bar; when due, write the mean loss since the last time."""
        self.bar.update(step - self.bar.n)
        if not due and step != self.total_steps:
            return
        loss = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        self.bar.set_postfix({"stage": stage, "loss": f"{loss:.4f}", "rate": f"{rate:.1e}"}, refresh=False)
        self._write({"step": step, "epoch": round(epoch, 4), "stage": stage, "loss": loss, "learning_rate": rate})

    def evaluation(self, step: int, epoch: float, scores: dict[str, float], metric: str, better: bool) -> None:
        """Report an evaluation on the validation data."""
        mark = "  best so far" if better else ""
        self.say(f"epoch {epoch:.2f}  step {step}  validation {metric} {scores[metric]:.4f}{mark}")
        self._write(
            {"step": step, "epoch": round(epoch, 4), **{f"validation_{name}": value for name, value in scores.items()}}
        )

    def event(self, step: int, what: str, **facts: Any) -> None:
        """Record and say something that is no measurement."""
        self.say(what)
        self._write({"step": step, "event": what, **facts})

    def _write(self, record: dict[str, Any]) -> None:
        """Append to log.jsonl and pass on to the trackers. JSON has no NaN: an undefined score becomes null."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                finite = {
                    name: None if isinstance(value, float) and not math.isfinite(value) else value
                    for name, value in record.items()
                }
                file.write(redact(json.dumps({**finite, "time": round(time.time(), 3)})) + "\n")
        if self.trackers:
            numbers = {name: value for name, value in record.items() if not isinstance(value, str | list)}
            self.accelerator.log(numbers, step=record["step"])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested recipe values with dotted names; trackers take nothing but plain values."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
