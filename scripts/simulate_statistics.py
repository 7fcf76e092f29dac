"""How often do our intervals hold the truth, and how often do our tests find a difference that is not there?

    python scripts/simulate_statistics.py [--rounds 1000] [--sizes 200 500]

Every round draws a test set from a population whose true score is known, from which intervals and p-values are
computed as a run's are. The figures in docs/statistics.md come from this script.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hftransfer.report.outcomes import Outcomes
from hftransfer.report.statistics import bootstrap, compare, mcnemar, over_examples_and_seeds

RESAMPLES = 1000
# Of how many examples the truth is computed.
POPULATION = 400_000

Arrays = dict[str, NDArray[np.generic]]
Draw = Callable[[np.random.Generator, int], Arrays]


@dataclass(frozen=True)
class Population:
    """Where test sets come from: a kind of outcomes, a score, and how examples are drawn."""

    name: str
    kind: str
    metric: str
    draw: Draw
    names: tuple[str, ...] = ()
    known: float | None = None

    def truth(self) -> float:
        """The true score: as it is known, or that of very many examples."""
        if self.known is not None:
            return self.known
        return self.outcomes(np.random.default_rng(99), POPULATION).statistic(self.metric).value()

    def outcomes(self, rng: np.random.Generator, count: int) -> Outcomes:
        return Outcomes(self.kind, self.names, np.arange(count, dtype=np.uint64), self.draw(rng, count))


def classes(shares: tuple[float, ...], accuracy: float, rng: np.random.Generator, count: int) -> Arrays:
    """Labels of these shares; a wrong prediction is any other class."""
    labels_N = rng.choice(len(shares), count, p=shares)
    wrong_N = (labels_N + rng.integers(1, len(shares), count)) % len(shares)
    predicted_N = np.where(rng.random(count) < accuracy, labels_N, wrong_N)
    return {"labels": labels_N, "logits": np.eye(len(shares))[predicted_N]}


def entities(rng: np.random.Generator, count: int) -> Arrays:
    """Sentences with a varying number of entities, and of mistakes."""
    actual_N = rng.poisson(2.0, count)
    hits_N = rng.binomial(actual_N, rng.beta(6, 1.5, count))
    claimed_N = hits_N + rng.poisson(0.4, count)
    words_N2 = np.stack([np.full(count, 9), np.full(count, 10)], 1)
    return {"counts": np.stack([hits_N, claimed_N, actual_N], 1)[:, None], "words": words_N2}


def numbers(rng: np.random.Generator, count: int) -> Arrays:
    """Predictions that correlate with targets at about 0.8."""
    targets_N = rng.normal(size=count)
    return {"labels": targets_N, "predictions": 0.8 * targets_N + 0.6 * rng.normal(size=count)}


POPULATIONS = (
    Population("accuracy 0.9", "single_label", "accuracy", partial(classes, (0.5, 0.5), 0.9), ("a", "b"), 0.9),
    Population("accuracy 0.6", "single_label", "accuracy", partial(classes, (0.5, 0.5), 0.6), ("a", "b"), 0.6),
    Population(
        "macro-F1, skewed", "single_label", "f1_macro", partial(classes, (0.6, 0.25, 0.15), 0.8), ("a", "b", "c")
    ),
    Population("entity F1", "entities", "f1", entities, ("place",)),
    Population("Pearson 0.8", "regression", "pearson", numbers),
)


def coverage(population: Population, count: int, rounds: int, seed: int = 0) -> float:
    """The share of rounds whose 95 % interval holds the true score."""
    truth = population.truth()
    rng, held = np.random.default_rng(seed), 0
    for _ in range(rounds):
        drawn = population.outcomes(rng, count).statistic(population.metric)
        found = bootstrap(drawn, resamples=RESAMPLES, seed=int(rng.integers(2**31)))
        # A bound may be the truth itself, up to rounding.
        held += found.low - 1e-9 <= truth <= found.high + 1e-9
    return held / rounds


def seed_coverage(seeds: int, count: int, rounds: int, seed: int = 0) -> float:
    """The same for the mean over seeds whose true accuracies scatter by 0.01 about 0.85."""
    rng, held = np.random.default_rng(seed), 0
    for _ in range(rounds):
        hard_N, parts = rng.random(count), []
        for _ in range(seeds):
            # Half of what makes an example hard is the same for all seeds.
            noise_N = np.where(rng.random(count) < 0.5, hard_N, rng.random(count))
            right_N = noise_N < rng.normal(0.85, 0.01)
            arrays = {"labels": np.zeros(count, int), "logits": np.eye(2)[(~right_N).astype(int)]}
            parts.append(Outcomes("single_label", ("a", "b"), np.arange(count, dtype=np.uint64), arrays))
        found = over_examples_and_seeds(
            [part.statistic("accuracy") for part in parts], resamples=RESAMPLES, seed=int(rng.integers(2**31))
        )
        held += found.low - 1e-9 <= 0.85 <= found.high + 1e-9
    return held / rounds


def false_positives(population: Population, count: int, rounds: int, seed: int = 0) -> dict[str, float]:
    """How often two equally good models differ at the 5 % level: by the paired bootstrap, and by McNemar's test."""
    rng = np.random.default_rng(seed)
    hits = {"paired bootstrap": 0, "McNemar": 0}
    for _ in range(rounds):
        first, second = pair(population, rng, count)
        one, other = (part.statistic(population.metric) for part in (first, second))
        found = compare([one], [other], resamples=RESAMPLES, seed=int(rng.integers(2**31)))
        hits["paired bootstrap"] += found.p_value <= 0.05
        right, right_other = first.right(), second.right()
        if right is not None and right_other is not None:
            hits["McNemar"] += mcnemar(int((right & ~right_other).sum()), int((~right & right_other).sum())) <= 0.05
    return {name: value / rounds for name, value in hits.items()}


def pair(population: Population, rng: np.random.Generator, count: int) -> tuple[Outcomes, Outcomes]:
    """Outcomes of two equally good models on the same examples; on two thirds of them they agree."""
    first = population.outcomes(rng, count)
    labels_N = first.arrays["labels"]
    second = population.outcomes(rng, count).arrays
    # The second model answers anew where it does not agree: with the same chance of being right.
    right_N = second["logits"].argmax(-1) == second["labels"]
    classes = first.arrays["logits"].shape[1]
    wrong_N = (labels_N + rng.integers(1, classes, count)) % classes
    anew_NC = np.eye(classes)[np.where(right_N, labels_N, wrong_N)]
    agree_N = rng.random(count) < 2 / 3
    logits_NC = np.where(agree_N[:, None], first.arrays["logits"], anew_NC)
    return first, Outcomes(first.kind, first.names, first.rows, {"labels": labels_N, "logits": logits_NC})


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 500], help="examples of a test set")
    arguments = parser.parse_args()
    rounds, sizes = arguments.rounds, arguments.sizes
    columns = f"{' | '.join(f'n = {size:,}' for size in sizes)} |\n|{'---|' * (len(sizes) + 1)}"
    print(f"Coverage of 95 % intervals, {rounds} rounds, {RESAMPLES} resamples\n")
    print(f"| score | {columns}")
    for population in POPULATIONS:
        shares = [coverage(population, count, rounds, count) for count in sizes]
        print(f"| {population.name} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    for seeds in (3, 5):
        shares = [seed_coverage(seeds, count, rounds, count) for count in sizes]
        print(f"| mean of {seeds} seeds | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
    print(f"\nFalse positives at the 5 % level, equal models, {rounds} rounds\n")
    print(f"| score, test | {columns}")
    for population in (one for one in POPULATIONS if one.kind == "single_label"):
        found = [false_positives(population, count, rounds, count) for count in sizes]
        for test in ("McNemar", "paired bootstrap") if population.metric == "accuracy" else ("paired bootstrap",):
            cells = " | ".join(f"{one[test]:.1%}" for one in found)
            print(f"| {population.name}, {test} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
