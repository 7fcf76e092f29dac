"""The regrets of the advisor and of its rivals, from the trainings that `benchmarks.regret` has kept.

The advisor is fitted anew for every data set, on the trainings of all others: no rule has seen the cells on which it is
scored.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks import records
from hftransfer.advise import rules
from hftransfer.advise.candidates import Candidate, candidates
from hftransfer.advise.rules import Knowledge, Situation, Weights
from hftransfer.training_settings import ENOUGH_STEPS

KEY = ("data_set", "examples", "checkpoint", "seed")
FIGURES, LINE_LENGTH = 3, 120

Key: TypeAlias = tuple[str, int, str, int]


@dataclass(frozen=True)
class Trained:
    """One training of a candidate, with the situation that the advisor saw before it."""

    key: Key
    situation: Situation
    foreign: bool
    blocks: int
    candidate: Candidate
    score: float
    seconds: float


def collect(folder: Path) -> list[Trained]:
    """All trainings whose situation was measured."""
    measured = {tuple(line[name] for name in KEY): line for line in records.read(folder / "measured.jsonl")}
    found = []
    for line in records.read(folder / "scores.jsonl"):
        key = tuple(line[name] for name in KEY)
        if key not in measured:
            continue
        seen = measured[key]
        situation = Situation(*(seen[name] for name in Situation.__dataclass_fields__))
        blocks = len(seen["layers"]) - 1
        known = {one.name: one for one in candidates(blocks, situation.train_examples, situation.classes)}
        if line["candidate"] in known:
            candidate = known[line["candidate"]]
            found.append(
                Trained(key, situation, seen["foreign"], blocks, candidate, line["score"], line["training_seconds"])
            )
    return found


def weights_of(found: Sequence[Trained]) -> dict[str, rules.Vector]:
    """Kind -> weights."""
    return rules.fit(
        [one.situation for one in found], [one.candidate.kind for one in found], [one.score for one in found]
    )


def without(found: Sequence[Trained], data_set: str) -> list[Trained]:
    """The trainings of all other data sets."""
    return [one for one in found if one.key[0] != data_set]


def sizes_of(found: Sequence[Trained]) -> tuple[int, int]:
    """Fewest and most training rows."""
    counts = [one.situation.train_examples for one in found]
    return min(counts), max(counts)


def fitted(found: Sequence[Trained]) -> Knowledge:
    """Weights from all trainings, with the deviation of predictions for data sets that were left out."""
    errors: dict[str, list[float]] = defaultdict(list)
    for data_set in sorted({one.key[0] for one in found}):
        weights = weights_of(without(found, data_set))
        for one in found:
            if one.key[0] == data_set and one.candidate.kind in weights:
                moved = float(weights[one.candidate.kind] @ one.situation.features())
                errors[one.candidate.kind].append(rules.logit(one.score) - rules.logit(one.situation.head) - moved)
    kinds = {
        kind: Weights(
            tuple(round(float(value), FIGURES) for value in weights),
            round(float(np.sqrt(np.mean(np.square(errors[kind])))), FIGURES),
            len(errors[kind]),
        )
        for kind, weights in weights_of(found).items()
        if len(errors[kind]) > 1
    }
    return Knowledge(kinds, sizes_of(found), source(found))


def source(found: Sequence[Trained]) -> str:
    """What was trained, in words."""
    data_sets = ", ".join(sorted({one.key[0] for one in found}))
    checkpoints = ", ".join(sorted({one.key[2] for one in found}))
    counts = ", ".join(f"{count:,}" for count in sorted({one.key[1] for one in found}))
    return f"{data_sets}; {counts} examples; {checkpoints}; {len(found)} trainings"


def source_of(knowledge: Knowledge, found: Sequence[Trained]) -> str:
    """The module that holds the weights."""
    lines = [
        '"""What real trainings have shown, as weights of `rules.py`; written by `python -m benchmarks.regret fit`."""',
        "",
        "from __future__ import annotations",
        "",
        "from hftransfer.advise.rules import Knowledge, Weights",
        "",
        "KNOWLEDGE = Knowledge(",
        "    kinds={",
    ]
    for kind, weights in sorted(knowledge.kinds.items()):
        lines.append(f'        "{kind}": Weights({weights.weights}, {weights.deviation}, {weights.trainings}),')
    lines += ["    },", f"    sizes={knowledge.sizes},"]
    whole = f'    source="{knowledge.source}",'
    if len(whole) <= LINE_LENGTH:
        return "\n".join([*lines, whole, ")", ""])
    *words, last = knowledge.source.split("; ")
    lines += ["    source=(", *(f'        "{part}; "' for part in words), f'        "{last}"', "    ),"]
    return "\n".join([*lines, ")", ""])


Policy: TypeAlias = Callable[[Sequence[Trained], Knowledge], Trained | None]
"""From the candidates of one cell and seed, and what other data sets have shown, to the one that is done."""


def advisor(options: Sequence[Trained], knowledge: Knowledge) -> Trained | None:
    """What the rules choose."""
    predictions = [rules.predict(one.situation, one.candidate, knowledge) for one in options]
    if not any(one.score is not None for one in predictions):
        return None
    chosen = rules.choose(predictions)
    return next(one for one in options if one.candidate is chosen.candidate)


def always(type: str) -> Policy:
    """One strategy everywhere."""

    def policy(options: Sequence[Trained], knowledge: Knowledge) -> Trained | None:
        return next((one for one in options if one.candidate.type == type), None)

    return policy


def table_says(options: Sequence[Trained], knowledge: Knowledge) -> Trained | None:
    """The tutorial's table."""
    first = options[0]
    type, _ = rules.tutorial(first.situation.train_examples, foreign=first.foreign)
    return always(type)(options, knowledge)


POLICIES: Mapping[str, Policy] = {
    "advisor": advisor,
    "always full fine-tuning": always("full_fine_tuning"),
    "always feature extraction": always("feature_extraction"),
    "tutorial's table": table_says,
}


def complete(found: Sequence[Trained]) -> dict[Key, list[Trained]]:
    """Cell and seed -> its candidates in their order, where all have been trained."""
    grouped: dict[Key, list[Trained]] = defaultdict(list)
    for one in found:
        grouped[one.key].append(one)
    whole = {}
    for key, group in grouped.items():
        first = group[0]
        situation = first.situation
        names = [one.name for one in candidates(first.blocks, situation.train_examples, situation.classes)]
        by_name = {one.candidate.name: one for one in group}
        if set(names) <= set(by_name):
            whole[key] = [by_name[name] for name in names]
    return whole


def regrets(found: Sequence[Trained]) -> dict[Key, dict[str, float]]:
    """Cell and seed -> policy -> best score in hindsight less its own."""
    whole = complete(found)
    known = {data_set: _knowledge(without(found, data_set)) for data_set in {key[0] for key in whole}}
    result: dict[Key, dict[str, float]] = {}
    for key, options in whole.items():
        best = max(one.score for one in options)
        own = {}
        for name, policy in POLICIES.items():
            chosen = policy(options, known[key[0]])
            if chosen is not None:
                own[name] = best - chosen.score
        result[key] = own
    return result


def _knowledge(found: Sequence[Trained]) -> Knowledge:
    kinds = {kind: Weights(tuple(map(float, weights)), 0.0, 0) for kind, weights in weights_of(found).items()}
    return Knowledge(kinds, sizes_of(found), "")


def by_cell(found: Mapping[Key, Mapping[str, float]]) -> dict[tuple[str, int, str], dict[str, list[float]]]:
    """Cell -> policy -> the regret of every seed."""
    cells: dict[tuple[str, int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (data_set, examples, checkpoint, _), own in found.items():
        for name, regret in own.items():
            cells[data_set, examples, checkpoint][name].append(regret)
    return cells


def summary(found: Mapping[Key, Mapping[str, float]], names: Sequence[str]) -> list[str]:
    """A table: mean regret over cells, its interval by drawing data sets anew, and how often a rival does better."""
    cells = by_cell(found)
    means = {
        name: {cell: statistics.mean(values[name]) for cell, values in cells.items() if values.get(name)}
        for name in names
    }
    own = means["advisor"]
    lines = [
        "| policy | mean regret | 95 % interval | worst cell | the advisor is better, worse |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        of_cells = means[name]
        low, high = interval_over_data_sets(of_cells)
        better = sum(own[cell] < regret - 1e-9 for cell, regret in of_cells.items())
        worse = sum(own[cell] > regret + 1e-9 for cell, regret in of_cells.items())
        versus = "" if name == "advisor" else f"{better}, {worse} of {len(of_cells)}"
        mean, worst = statistics.mean(of_cells.values()), max(of_cells.values())
        lines.append(f"| {name} | {_points(mean)} | {_points(low)} to {_points(high)} | {_points(worst)} | {versus} |")
    return lines


def interval_over_data_sets(of_cells: Mapping[tuple[Any, ...], float]) -> tuple[float, float]:
    """Of a mean over cells, whose keys begin with a data set, when those are drawn anew: cells of one hang together."""
    groups: dict[str, list[float]] = defaultdict(list)
    for (data_set, *_), value in of_cells.items():
        groups[data_set].append(value)
    names, generator = sorted(groups), np.random.default_rng(0)
    drawn = [
        np.mean(np.concatenate([groups[names[place]] for place in generator.integers(len(names), size=len(names))]))
        for _ in range(2000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def document(found: Sequence[Trained]) -> str:
    """The page with all regrets."""
    everything = regrets(found)
    whole = [one for group in complete(found).values() for one in group]
    seeds = sorted({key[3] for key in everything})
    parts = [
        "# The advisor's regret",
        "",
        "Made by `python -m benchmarks.regret table`; do not edit. Regret is the accuracy, in points, of the best "
        "candidate in hindsight less that of the one that was chosen, on the same test rows and seed. The best is "
        "chosen by the test score itself, so even a perfect advisor has some regret.",
        "",
        f"{len(by_cell(everything))} cells (data set, examples, checkpoint), {len(everything)} cells and seeds (seeds "
        f"{', '.join(map(str, seeds))}), {len(whole)} trainings. The advisor's rules are fitted anew for each data "
        "set, on the others alone. Up to 500 test rows a cell: the standard error of a score is about 2 points, and "
        "with few seeds single cells say little. The intervals draw data sets anew, since the cells of one hang "
        "together.",
        "",
        f"All take the defaults' schedule, at least {ENOUGH_STEPS} steps: what is left is the choice of strategy.",
        "",
        *summary(everything, list(POLICIES)),
        "",
        "## Cells",
        "",
        "Mean regret over seeds, lowest to highest in brackets where there are several.",
        "",
        *cell_table(everything),
        "",
        "## What each strategy reaches",
        "",
        "Mean test accuracy over seeds.",
        "",
        *score_tables(found),
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, one thread, with other work beside it. Commands, in "
        "this order; all of them go on where they stopped:",
        "",
        "```bash",
        *commands(everything),
        "python -m benchmarks.regret table",
        "```",
        "",
    ]
    return "\n".join(parts)


def cell_table(found: Mapping[Key, Mapping[str, float]]) -> list[str]:
    """A row per cell."""
    names = list(POLICIES)
    lines = [f"| data | examples | checkpoint | seeds | {' | '.join(names)} |", f"|{'---|' * (4 + len(names))}"]
    for (data_set, examples, checkpoint), values in sorted(by_cell(found).items(), key=lambda item: item[0][2::-1]):
        shown = []
        for name in names:
            own = values[name]
            spread = f" ({_points(min(own))} to {_points(max(own))})" if len(own) > 1 else ""
            shown.append(f"{_points(statistics.mean(own))}{spread}")
        lines.append(f"| {data_set} | {examples:,} | {checkpoint} | {len(own)} | {' | '.join(shown)} |")
    return lines


def score_tables(found: Sequence[Trained]) -> list[str]:
    """A row per candidate and a column per cell, for every checkpoint and number of examples."""
    cells: dict[tuple[str, int], dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for group in complete(found).values():
        for one in group:
            data_set, examples, checkpoint, _ = one.key
            cells[checkpoint, examples][one.candidate.name][data_set].append(one.score)
    lines = []
    for (checkpoint, examples), by_name in sorted(cells.items()):
        data_sets = sorted({data_set for scores in by_name.values() for data_set in scores})
        lines += [
            f"| {checkpoint}, {examples:,} examples | {' | '.join(data_sets)} |",
            f"|{'---|' * (1 + len(data_sets))}",
        ]
        for name, scores in by_name.items():
            lines.append(f"| {name} | {' | '.join(_points(statistics.mean(scores[one])) for one in data_sets)} |")
        lines.append("")
    return lines[:-1]


def commands(found: Mapping[Key, Mapping[str, float]]) -> list[str]:
    """What trains and measures all these cells."""
    lines = []
    for checkpoint in sorted({key[2] for key in found}):
        cells = sorted({(key[1], key[0]) for key in found if key[2] == checkpoint})
        seeds = sorted({key[3] for key in found if key[2] == checkpoint})
        named = " ".join(f"{data_set}:{examples}" for examples, data_set in cells)
        options = f"--checkpoint {checkpoint.upper().replace('-', '_')} --data DATA --seeds {' '.join(map(str, seeds))}"
        lines += [f"python -m benchmarks.regret {verb} {named} {options}" for verb in ("run", "measure")]
    return lines
