"""Runs the contestants of a case in turn, each sample in a process of its own, and keeps what they report.

Nothing here loads torch: the harness must not take part in what it measures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cases import Case, Contestant
from benchmarks.contestants.common import Spec
from benchmarks.data import write_splits
from benchmarks.stats import interleaved

ROOT = Path(__file__).parents[1]
FIRST_SEED = 13
TRIAL_EXAMPLES = 512
# A trial is stopped when its process has taken these seconds (imports, scoring) and this multiple of the fastest.
TRIAL_SECONDS, TRIAL_MULTIPLE = 60, 2
# A contestant that takes longer has hung.
MAX_SECONDS = 3 * 3600
# Each would change what a contestant does by default.
DROPPED_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "HF_TOKEN", "HF_ENDPOINT")

Sample = dict[str, Any]


@dataclass
class Harness:
    """One call of `python -m benchmarks run`.

    Attributes:
        checkpoint: Folder of the pretrained model.
        data: Folder of the data set.
        out: Where results go.
        repeats: Rounds.
        examples: Training examples.
        test_examples: Most test examples.
        peer_python: An interpreter for peers that this one lacks.
        command: The command line, for the report.
    """

    checkpoint: Path
    data: Path
    out: Path
    repeats: int
    examples: int
    test_examples: int | None = None
    peer_python: str | None = None
    command: str = ""
    _splits: dict[int, dict[str, str]] = field(default_factory=dict)

    def run(self, case: Case) -> Path:
        """Measure a case and return the file of its results; it is written anew after every round."""
        self.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{case.name}-", dir=self.out) as scratch:
            self._splits.clear()
            return _Measurement(self, case, Path(scratch)).run()

    def splits(self, examples: int, folder: Path) -> dict[str, str]:
        """The data files with this many training examples."""
        if examples not in self._splits:
            target = folder / f"data-{examples}"
            self._splits[examples] = write_splits(self.data, target, examples, self.test_examples)
        return self._splits[examples]


@dataclass
class _Measurement:
    """A case while it is measured."""

    harness: Harness
    case: Case
    scratch: Path
    samples: list[Sample] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> Path:
        pythons = self._interpreters()
        ready = {one.name: self._tuned(one, pythons[one.name]) for one in self.case.contestants if one.name in pythons}
        path = self.harness.out / f"{self.case.name}{'.gpu' if machine.describe()['gpu'] else ''}.json"
        if self.case.warm:
            for name in ready:
                self._say("warm-up", self._sample(ready[name], pythons[name], -1))
        for number, order in enumerate(interleaved(list(ready), self.harness.repeats)):
            for name in order:
                sample = self._sample(ready[name], pythons[name], number)
                self._say(f"round {number + 1}/{self.harness.repeats}", sample)
                self.samples.append(sample)
            self._write(path)
        return path

    def _interpreters(self) -> dict[str, str]:
        """The interpreter of every contestant that can run here; the others are skipped, with one line each."""
        found = {}
        for contestant in self.case.contestants:
            python = interpreter_with(contestant.needs, [sys.executable, self.harness.peer_python])
            if python is None:
                reason = f"{contestant.needs} is not installed (install it, or name an interpreter with --peer-python)"
                self.skipped[contestant.name] = reason
                print(f"{self.case.name}  {contestant.name}  skipped: {reason}", flush=True)
            else:
                found[contestant.name] = python
        return found

    def _tuned(self, contestant: Contestant, python: str) -> Contestant:
        """The contestant with the fastest of its candidates, by two short trials of each."""
        if not contestant.candidates:
            return contestant
        examples = min(TRIAL_EXAMPLES, self.harness.examples)
        names = [str(number) for number in range(len(contestant.candidates))]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        disturbed = dict.fromkeys(names, False)
        errors: dict[str, str] = {}
        for order in interleaved(names, 2):
            for name in (name for name in order if name not in errors):
                fastest = min((one for found in seconds.values() for one in found), default=MAX_SECONDS)
                settings = {**contestant.settings, **contestant.candidates[int(name)]}
                if "epochs" in settings:
                    settings["epochs"] = 1
                trial = replace(contestant, settings=settings, examples=examples / self.harness.examples)
                sample = self._sample(trial, python, -1, TRIAL_SECONDS + TRIAL_MULTIPLE * fastest)
                self._say(f"trial {dict(contestant.candidates[int(name)])}", sample)
                if sample["error"] is None:
                    seconds[name].append(sample["seconds"])
                    disturbed[name] |= sample["marked"]
                else:
                    errors[name] = sample["error"]
        trials = [
            {
                "settings": dict(candidate),
                "seconds": min(seconds[name], default=None),
                "marked": disturbed[name],
                "error": errors.get(name),
            }
            for name, candidate in zip(names, contestant.candidates, strict=True)
        ]
        chosen_name = min((name for name in names if seconds[name]), key=lambda name: min(seconds[name]), default="0")
        chosen = dict(contestant.candidates[int(chosen_name)])
        self.choices[contestant.name] = {"settings": chosen, "trials": trials, "examples": examples}
        return replace(contestant, settings={**contestant.settings, **chosen})

    def _sample(self, contestant: Contestant, python: str, number: int, limit: float = MAX_SECONDS) -> Sample:
        """Run a contestant once, for at most `limit` seconds."""
        # A warm contestant comes back to its folder; every other starts with empty caches.
        if self.case.warm:
            folder = self.scratch / _slug(contestant.name)
            folder.mkdir(exist_ok=True)
        else:
            folder = Path(tempfile.mkdtemp(prefix=f"{_slug(contestant.name)}-", dir=self.scratch))
        examples = max(1, round(contestant.examples * self.harness.examples))
        spec = Spec(
            checkpoint=self._checkpoint(contestant),
            **self.harness.splits(examples, self.scratch),
            folder=str(folder),
            seed=FIRST_SEED + max(0, number),
            spawned=time.monotonic(),
            settings=dict(contestant.settings),
            result=str(folder / "result.json"),
        )
        sample: Sample = {"contestant": contestant.name, "round": number, "examples": examples}
        sample |= run_process(python, f"benchmarks.{contestant.module}", spec, folder, limit)
        if not self.case.warm:
            shutil.rmtree(folder)
        return sample

    def _checkpoint(self, contestant: Contestant) -> str:
        """The checkpoint of the command line, or the random one, made when it is first needed."""
        if contestant.checkpoint == "given":
            return str(self.harness.checkpoint)
        target = self.scratch / contestant.checkpoint
        if not target.exists():
            command = [sys.executable, "-m", "benchmarks.random_checkpoint", str(self.harness.checkpoint), str(target)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return str(target)

    def _write(self, path: Path) -> None:
        """Keep all samples so far."""
        result = {
            "case": self.case.name,
            "date": date.today().isoformat(),
            "command": self.harness.command,
            "revision": machine.revision(),
            "machine": machine.describe(),
            "checkpoint": self.harness.checkpoint.name,
            "data_set": self.harness.data.name,
            "examples": self.harness.examples,
            "repeats": self.harness.repeats,
            "samples": self.samples,
            "skipped": self.skipped,
            "choices": self.choices,
        }
        temporary = path.with_suffix(".writing")
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
        os.replace(temporary, path)

    def _say(self, what: str, sample: Sample) -> None:
        """One line per sample."""
        if sample["error"] is not None:
            outcome = f"failed: {sample['error']}"
        else:
            outcome = f"{sample['seconds']:.2f} s"
            outcome += f"  {sample['correct'] / sample['total']:.1%} right" if sample.get("total") else ""
        others = "unknown" if sample["others"] is None else f"{sample['others']:.1%}"
        mark = "  (disturbed)" if sample["marked"] else ""
        print(f"{self.case.name}  {what}  {sample['contestant']}  {outcome}  others {others}{mark}", flush=True)


def run_process(python: str, module: str, spec: Spec, folder: Path, limit: float = MAX_SECONDS) -> Sample:
    """Run one contestant's process while watching the others on the machine; a failure is part of the sample."""
    Path(spec.result).unlink(missing_ok=True)
    before = machine.read_processors()
    spec = replace(spec, spawned=time.monotonic())
    spec.write(folder / "spec.json")
    error = None
    with (folder / "output.txt").open("w+", encoding="utf-8", errors="replace") as output:
        try:
            code = subprocess.run(
                [python, "-m", module, str(folder / "spec.json")],
                cwd=ROOT,
                env=environment(folder),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code, error = None, f"stopped after {limit:.0f} s"
        after = machine.read_processors()
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    share = machine.others_share(before, after, os.cpu_count() or 1)
    sample: Sample = {"others": share, "marked": machine.is_marked(share)}
    if error is None and (code != 0 or not Path(spec.result).exists()):
        error = lines[-1] if lines else f"exit status {code} without a word"
    if error is not None:
        return {**sample, "error": error, "seconds": None}
    return {**sample, "error": None, **json.loads(Path(spec.result).read_text(encoding="utf-8"))}


def environment(folder: Path) -> dict[str, str]:
    """What a contestant's process sees: no network, and caches of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED_VARIABLES}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "huggingface"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HFTRANSFER_CACHE": str(folder / "cache"),
    }


def interpreter_with(package: str, pythons: Sequence[str | None]) -> str | None:
    """The first interpreter that has a package; any will do where none is needed."""
    for python in pythons:
        if python is None:
            continue
        code = (
            "import importlib.util, sys; sys.exit(bool(sys.argv[1]) and importlib.util.find_spec(sys.argv[1]) is None)"
        )
        if subprocess.run([python, "-c", code, package], check=False).returncode == 0:
            return python
    return None


def command_line(arguments: Sequence[str], hidden: Mapping[str, str]) -> str:
    """The command as anybody could type it: paths of this machine are replaced by words.

    Args:
        arguments: What came after `python -m benchmarks`.
        hidden: Option -> word for its value.
    """
    shown, word = [], None
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if word is not None:
            shown.append(word)
        elif equals and name in hidden:
            shown.append(f"{name}={hidden[name]}")
        else:
            shown.append(argument)
        word = hidden.get(argument) if word is None else None
    return " ".join(["python -m benchmarks", *shown])


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
