"""docs/benchmarks.md from the results: what was measured, where, with which command, and what came of the targets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cases import CASES, Case, Comparison
from benchmarks.machine import MARKED_SHARE
from benchmarks.outcomes import (
    MIN_EXAMPLES,
    MIN_ROUNDS,
    TOLERANCE,
    Outcome,
    Result,
    accuracy_of,
    good_samples,
    judge,
    judge_series,
    without_paths,
)
from benchmarks.stats import Spread

NOT_MEASURED = "not measured"
HEADING, RULE = "| case | comparison | target | result | verdict |", "|---|---|---|---|---|"
SERIES_GOALS = {
    "time": f"linear within {TOLERANCE:.0%}",
    "disk": f"linear within {TOLERANCE:.0%}",
    "memory": f"flat within {TOLERANCE:.0%}",
}
INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks table` from measured results; do not edit. `python -m benchmarks list` says what there
is to measure.
"""
TIMED = """\
## What is timed

Unless a section says otherwise, the clock covers the tokenization, the training with all encoding that it needs, and
one evaluation on validation data of a tenth of the training data's size. It covers neither imports nor loading the
model nor saving nor scoring the test data. Every sample is a process of its own; the feature cache is empty when it
starts.
"""
READING = f"""\
## How to read the tables

Contestants take turns, forwards and backwards (ABBA). A time is the median of its rounds with the lowest and the
highest; a ratio is that of the medians, with the lowest and the highest ratio inside a round. Accuracies ("right") are
means over the rounds with the 95 % Wilson interval of one test set, in the order of the comparison. Memory is the
highest resident size of the process, on a GPU also the most that torch has had allocated there. While a sample runs,
the share of all processors that other processes take is read from /proc; above {MARKED_SHARE:.0%} the sample is
marked († in the tables) and left out of the medians as long as the contestant has another. A verdict needs
{MIN_ROUNDS} rounds, two undisturbed samples of both sides and, where accuracies are compared, {MIN_EXAMPLES:,} training
examples and an accuracy that is not below the interval of the other side. Where the target says how many points lower
an accuracy may be, that takes the interval's place, and a lower one is a target missed.
"""


def read_results(folder: Path) -> list[Result]:
    """The results of all cases in a folder, in the order of the cases."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    order = list(CASES)
    return sorted((one for one in found if one["case"] in CASES), key=lambda one: order.index(one["case"]))


def document(results: Sequence[Result]) -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        _runs(results),
        TIMED,
        READING,
        f"## Targets\n\n{_summary(results, gpu=False)}",
        f"## Targets on a GPU\n\n{_summary(results, gpu=True)}",
        *(_section(result) for result in results),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _runs(results: Sequence[Result]) -> str:
    """Machines, commands, dates and versions."""
    runs: dict[str, list[str]] = {}
    for result in results:
        at = f", revision {result['revision']}" if result.get("revision") else ""
        runs.setdefault(_machine(result), []).append(f"- {result['date']}{at}: `{result['command']}`")
    lines = [line for name, commands in runs.items() for line in (f"{name}:", "", *dict.fromkeys(commands), "")]
    versions: dict[str, set[str]] = {}
    for sample in (sample for result in results for sample in result["samples"]):
        for name, version in sample.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    shown = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    data = sorted({f"{one['data_set']} ({one['examples']:,} examples)" for one in results})
    checkpoints = sorted({one["checkpoint"] for one in results})
    return (
        "## Machine, commands, versions\n\n"
        + "\n".join(lines)
        + f"\nData: {', '.join(data)}. Checkpoint: {', '.join(checkpoints)}. Versions: {shown}."
    )


def _machine(result: Result) -> str:
    """One line on the machine of a result."""
    facts = result["machine"]
    threads = sorted({sample["threads"] for sample in result["samples"] if "threads" in sample})
    parts = [
        f"{facts['processor']} ({facts['architecture']}, {facts['cores']} cores)",
        f"{'/'.join(map(str, threads)) or 'no'} threads per process",
        " ".join(facts["flags"]),
        "" if facts["memory_gib"] is None else f"{facts['memory_gib']:g} GiB",
        f"{facts['system']}, Python {facts['python']}",
        f"GPU: {facts['gpu'] or 'none'}",
    ]
    return ", ".join(part for part in parts if part)


def _summary(results: Sequence[Result], *, gpu: bool) -> str:
    """One row per comparison of the cases for a machine with a GPU, or of those for one without."""
    rows = [HEADING, RULE]
    for case in (case for case in CASES.values() if case.gpu is gpu):
        result = next((r for r in results if r["case"] == case.name and bool(r["machine"]["gpu"]) is gpu), None)
        if case.series:
            outcomes = (None,) * len(SERIES_GOALS) if result is None else judge_series(result)
            goals = zip(SERIES_GOALS.items(), outcomes, strict=True)
            rows += [_row(case, what, goal, outcome) for (what, goal), outcome in goals]
        for one in case.comparisons:
            rows.append(_row(case, _versus(one), _target(one), None if result is None else judge(result, one)))
    return "\n".join(rows)


def _row(case: Case, what: str, goal: str, outcome: Outcome | None) -> str:
    """A line of a summary."""
    shown, verdict = (NOT_MEASURED, "-") if outcome is None else (outcome.shown, outcome.verdict)
    return f"| {case.title} | {what} | {goal} | {shown} | {verdict} |"


def _versus(comparison: Comparison) -> str:
    return f"{comparison.numerator} / {comparison.denominator}"


def _target(comparison: Comparison) -> str:
    if comparison.target is None:
        return "-"
    value = f"{comparison.target:.0%}" if comparison.quantity == "rate" else f"{comparison.target:g}"
    within = "" if comparison.margin is None else f", accuracy within {100 * comparison.margin:g} points"
    return f"{'at most' if comparison.at_most else 'at least'} {value}{within}"


def _section(result: Result) -> str:
    """A case: its samples, what was tuned, what failed."""
    case = CASES[result["case"]]
    on = f" ({result['machine']['gpu']})" if result["machine"]["gpu"] else ""
    parts = [f"## {case.title}{on}"]
    parts += [f"Timed: {case.timed}"] if case.timed else []
    parts.append(_table(result, case))
    parts += [f"- {note}" for note in case.notes]
    parts += [_choice(name, choice) for name, choice in result["choices"].items()]
    parts += [f"- {name}: skipped, {reason}." for name, reason in result["skipped"].items()]
    parts += [f"- {line}" for line in _failures(result["samples"])]
    body, previous = parts[0], parts[0]
    for part in parts[1:]:
        body += ("\n" if part.startswith("- ") and previous.startswith("- ") else "\n\n") + part
        previous = part
    return body


def _table(result: Result, case: Case) -> str:
    """One row per contestant."""
    rows = [
        "| contestant | examples | seconds | lowest to highest | right, 95 % interval | memory | others | disturbed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contestant in case.contestants:
        samples = [one for one in result["samples"] if one["contestant"] == contestant.name]
        good = good_samples(result, contestant.name)
        if not samples:
            continue
        marked = sum(one["marked"] for one in samples)
        others = [one["others"] for one in samples if one["others"] is not None]
        tail = f"{max(others):.1%}" if others else "unknown"
        tail += f" | {'†' if marked else ''}{marked} of {len(samples)} |"
        name, examples = contestant.name, f"{samples[0]['examples']:,}"
        if not good:
            rows.append(f"| {name} | {examples} | failed | | | | {tail}")
            continue
        memory = f"{max(one['peak_rss_mib'] for one in good):,.0f} MiB"
        on_gpu = max(one.get("peak_gpu_mib") or 0 for one in good)
        memory += f", GPU {on_gpu:,.0f} MiB" if on_gpu else ""
        if all("operations" in one for one in good):
            rate = Spread.of([one["operations"] / one["seconds"] for one in good])
            time = f"{rate.median / 1e9:,.0f} GFLOP/s | {rate.low / 1e9:,.0f} to {rate.high / 1e9:,.0f}"
        else:
            seconds = Spread.of([one["seconds"] for one in good])
            time = f"{seconds.median:.2f} | {seconds.low:.2f} to {seconds.high:.2f}"
        found = accuracy_of(good)
        right = "" if found is None else f"{found.share:.1%}, {found.low:.1%} to {found.high:.1%}"
        rows.append(f"| {name} | {examples} | {time} | {right} | {memory} | {tail}")
    return "\n".join([*rows, *_whole_calls(result, case)])


def _whole_calls(result: Result, case: Case) -> list[str]:
    """What the caller of `finetune` waits for, where the clock covers less."""
    medians = {}
    for contestant in () if case.series else case.contestants:
        good = [one for one in good_samples(result, contestant.name) if "whole_seconds" in one]
        if good and "operations" not in good[0] and good[0]["seconds"] != good[0]["whole_seconds"]:
            medians[contestant.name] = Spread.of([one["whole_seconds"] for one in good]).median
    shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items())
    return [f"\nWhole calls of `finetune`, with loading, final scores and saving: {shown}."] if shown else []


def _choice(name: str, choice: Result) -> str:
    """What was tried for a tuned contestant."""
    tried = [
        _settings(trial["settings"])
        + (
            f": {without_paths(trial.get('error') or 'failed')}"
            if trial["seconds"] is None
            else f": {trial['seconds']:.2f} s"
        )
        + ("†" if trial["marked"] else "")
        for trial in choice["trials"]
    ]
    chosen = f"- {name} is run with {_settings(choice['settings'])}, the fastest on {choice['examples']:,} examples"
    return f"{chosen} of {'; '.join(tried)}."


def _settings(settings: Result) -> str:
    return ", ".join(f"{name} {'default' if value is None else value}" for name, value in settings.items())


def _failures(samples: Iterable[Result]) -> list[str]:
    """One line per contestant and error."""
    return list(
        dict.fromkeys(
            f"{one['contestant']}: failed, {without_paths(one['error'])}" for one in samples if one["error"] is not None
        )
    )
