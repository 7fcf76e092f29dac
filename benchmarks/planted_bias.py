"""How often the diagnosis of data finds what was planted, and how often it cries wolf.

    python -m benchmarks.planted_bias --data DATA --draws 40 --output planted.json

Every draw takes random rows of a data set (copies within it left out first) and splits them into train and test.

- permuted: the labels are shuffled, so that nothing is there to be found;
- real: the rows as they are; what is found then is a property of the data set, not of the draw;
- token N %: a made-up word is put into N % of the training texts of one class;
- leak: 2 % of the test rows are copied into train, every second one with other signs and capitals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from hftransfer.data.copies import copies
from hftransfer.diagnose.bias import Findings, Rows, Subject, diagnose

SETS = {
    "sst2": (["text"], "label"),
    "trec6": (["text"], "label"),
    "scicite": (["text"], "label"),
    "mrpc": (["sentence1", "sentence2"], "label"),
    "davidson": (["text"], "label"),
}
TOKEN = "zorbly"
STRENGTHS = (0.05, 0.1, 0.2, 0.5)
TRAIN, TEST = 1_000, 300
LEAKED = 6


@dataclass(frozen=True)
class Pool:
    """Rows of a data set without copies."""

    columns: list[list[str]]
    labels_N: np.ndarray
    names: list[str]


def pool_of(folder: Path, name: str, most: int = 6_000) -> Pool:
    """Read a data set, and leave out rows that repeat, exactly or nearly, others among them."""
    inputs, label = SETS[name]
    frame = pd.read_parquet(folder / name / "train.parquet").drop_duplicates(inputs)
    frame = frame.sample(min(most, len(frame)), random_state=0)
    half = len(frame) // 2
    # Near copies within are pairs between two parts, of which the draws then take train and test.
    parts = [[frame[column].tolist() for column in inputs] for frame in (frame[:half], frame[half:])]
    _, near = copies(parts[0], parts[1])
    frame = pd.concat([frame[:half], frame[half:][~near]])
    names, codes = np.unique(frame[label].astype(str), return_inverse=True)
    return Pool([frame[column].tolist() for column in inputs], codes, names.tolist())


def draw(pool: Pool, rng: np.random.Generator, *, permuted: bool, token: float, leak: bool) -> Subject:
    """Train and test rows, with what is planted."""
    half = len(pool.labels_N) // 2
    chosen = [rng.choice(half, TRAIN, replace=False), half + rng.choice(len(pool.labels_N) - half, TEST, replace=False)]
    labels_N = rng.permutation(pool.labels_N) if permuted else pool.labels_N
    train, test = ([[column[row] for row in rows] for column in pool.columns] for rows in chosen)
    labels = labels_N[chosen[0]]
    if token:
        (members,) = np.nonzero(labels == rng.integers(len(pool.names)))
        for row in rng.choice(members, round(token * len(members)), replace=False):
            words = train[0][row].split()
            words.insert(int(rng.integers(len(words) + 1)), TOKEN)
            train[0][row] = " ".join(words)
    if leak:
        for place, row in enumerate(rng.choice(TEST, LEAKED, replace=False)):
            for own, theirs in zip(train, test, strict=True):
                own[place] = theirs[row] if place % 2 else f"  {theirs[row].upper()} !"
    splits = {"train": Rows(train, labels), "test": Rows(test, labels_N[chosen[1]])}
    return Subject(pool.names, pool.names[:1], splits, int(rng.integers(1 << 30)))


def outcome(found: Findings, warns: bool) -> dict[str, bool]:
    """What a draw came to."""
    (leak,) = found.leaks
    return {
        "any warning": warns,
        "any association": bool(found.words),
        "a word gives a class away": any(one.gives_away for one in found.words),
        "the planted word does": any(one.word == TOKEN and one.gives_away for one in found.words),
        "the planted word is associated": any(one.word == TOKEN for one in found.words),
        "any leak": leak.warns,
        "every planted copy": leak.exact + leak.near >= LEAKED,
    }


def conditions() -> Iterator[tuple[str, dict[str, float]]]:
    """Name and settings of everything that is tried."""
    yield "permuted", {"permuted": True, "token": 0.0, "leak": False}
    yield "real", {"permuted": False, "token": 0.0, "leak": False}
    for strength in STRENGTHS:
        yield f"token {strength:.0%}", {"permuted": False, "token": strength, "leak": False}
    yield "leak", {"permuted": False, "token": 0.0, "leak": True}


def rate(outcomes: list[dict[str, bool]], name: str) -> str:
    """A share with its exact interval."""
    hits = sum(one[name] for one in outcomes)
    interval = stats.binomtest(hits, len(outcomes)).proportion_ci(method="exact")
    return f"{hits / len(outcomes):.1%} [{interval.low:.1%}, {interval.high:.1%}] of {len(outcomes)}"


def main() -> None:
    """Try everything, keep outcomes after every condition, and print rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=40, help="per data set and clean condition; planted: a quarter")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the rates of what is there")
    arguments = parser.parse_args()
    kept = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    if arguments.table:
        table(kept)
        return
    for name in arguments.sets:
        pool = pool_of(arguments.data, name)
        for number, (condition, settings) in enumerate(conditions()):
            wanted = arguments.draws if condition in ("permuted", "real") else max(1, arguments.draws // 4)
            done = kept.setdefault(f"{name}/{condition}", [])
            while len(done) < wanted:
                rng = np.random.default_rng([list(SETS).index(name), number, len(done)])
                verdict, found = diagnose(draw(pool, rng, **settings))
                done.append(outcome(found, verdict.warns))
            arguments.output.write_text(json.dumps(kept))
    table(kept)


def table(kept: dict[str, list[dict[str, bool]]]) -> None:
    """Print the rates of all outcomes that there are."""
    for condition, _ in conditions():
        own = {key.partition("/")[0]: part for key, part in kept.items() if part and key.endswith(f"/{condition}")}
        every = [one for part in own.values() for one in part]
        print(f"{condition}: {', '.join(own) or 'nothing yet'}")
        for what in every[0] if every else ():
            by_set = ", ".join(f"{name} {np.mean([one[what] for one in part]):.0%}" for name, part in own.items())
            print(f"  {what}: {rate(every, what)} ({by_set})")


if __name__ == "__main__":
    main()
