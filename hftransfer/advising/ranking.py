"""Which of several checkpoints suits the data, before any of them is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hftransfer.advise.cross_validation import Reading
from hftransfer.verdicts import Estimate, IntervalChart, Verdict, VerdictTable

Z, LEVEL = 1.96, 0.05


@dataclass(frozen=True)
class Ranked:
    """A checkpoint and what was measured on it.

    Attributes:
        checkpoint: Its name.
        reading: What its frozen features hold.
        parameters: How many it has.
        seconds: What the pass and the measuring took.
    """

    checkpoint: str
    reading: Reading
    parameters: int
    seconds: float


def in_order(found: Sequence[Ranked]) -> list[Ranked]:
    """Best first: by the linear head on each checkpoint's best layer; the smaller checkpoint first among equals."""
    return sorted(found, key=lambda one: (-one.reading.best_layer.probe, one.parameters))


def p_value(one: Reading, other: Reading) -> float | None:
    """McNemar's exact test of the last layers' heads on the same rows; None for scores that rows do not have."""
    if not one.right_N or len(one.right_N) != len(other.right_N):
        return None
    first_N, second_N = np.asarray(one.right_N) > 0.5, np.asarray(other.right_N) > 0.5
    from scipy.stats import binomtest

    wins, losses = int((first_N & ~second_N).sum()), int((~first_N & second_N).sum())
    return 1.0 if not wins + losses else float(binomtest(wins, wins + losses).pvalue)


def verdict_of(found: Sequence[Ranked]) -> Verdict:
    """The ranking in words, a table and a chart."""
    ranked = in_order(found)
    name = ranked[0].reading.score_name
    rows = [
        [
            str(place),
            one.checkpoint,
            f"{one.reading.best_layer.probe:.3f} ({one.reading.best_layer.layer})",
            f"{one.reading.score:.3f}",
            f"{max(layer.neighbours for layer in one.reading.layers):.3f}",
            f"{max(layer.logme for layer in one.reading.layers):.3f}",
            f"{max(layer.h_score for layer in one.reading.layers):.3f}",
            f"{one.parameters / 1e6:.1f} M",
        ]
        for place, one in enumerate(ranked, 1)
    ]
    head = ["", "checkpoint", "best layer", "last layer", "neighbours", "LogME", "H-score", "parameters"]
    return Verdict(
        key="ranking",
        title="Which checkpoint suits the data",
        words=_words(ranked),
        tables=[VerdictTable(caption=f"Frozen features, {name} by cross-validation", head=head, rows=rows, texts=2)],
        charts=[
            IntervalChart(
                title="Linear head on the best layer",
                description="Cross-validated score of a linear head on each checkpoint's best layer.",
                estimates=[_estimate(one) for one in ranked],
                label=name,
            )
        ],
    )


def _estimate(one: Ranked) -> Estimate:
    value, reach = one.reading.best_layer.probe, Z * one.reading.deviation
    return Estimate(name=one.checkpoint, value=value, low=value - reach, high=value + reach)


def _words(ranked: Sequence[Ranked]) -> list[str]:
    first = ranked[0]
    found = [
        f"{first.checkpoint} suits the data best: a linear head on its layer {first.reading.best_layer.layer} has "
        f"{first.reading.best_layer.probe:.3f} {first.reading.score_name} without any fine-tuning."
    ]
    for other in ranked[1:]:
        lead = first.reading.best_layer.probe - other.reading.best_layer.probe
        p = p_value(first.reading, other.reading)
        if p is None:
            apart = lead > Z * np.hypot(first.reading.deviation, other.reading.deviation)
            found.append(f"{other.checkpoint} is {lead:.3f} behind{'' if apart else ', which may be chance'}.")
            continue
        apart = p < LEVEL
        found.append(
            f"{other.checkpoint} is {lead:.3f} behind; the heads on the last layers "
            f"{'differ' if apart else 'cannot be told apart'} on the same rows (p = {p:.2g})."
        )
    leaders = {
        "LogME": max(ranked, key=lambda one: max(layer.logme for layer in one.reading.layers)),
        "the H-score": max(ranked, key=lambda one: max(layer.h_score for layer in one.reading.layers)),
    }
    against = [name for name, one in leaders.items() if one is not first]
    if against and len(ranked) > 1:
        found.append(f"{' and '.join(against)} would put another one first, so the order is not sure.")
    return found


def as_data(found: Sequence[Ranked]) -> list[dict[str, Any]]:
    """The ranking as plain data, best first."""
    return [
        {
            "checkpoint": one.checkpoint,
            "score_name": one.reading.score_name,
            "best_layer": one.reading.best_layer.layer,
            "best_layer_score": one.reading.best_layer.probe,
            "last_layer_score": one.reading.score,
            "standard_error": one.reading.deviation,
            "neighbours": max(layer.neighbours for layer in one.reading.layers),
            "logme": max(layer.logme for layer in one.reading.layers),
            "h_score": max(layer.h_score for layer in one.reading.layers),
            "parameters": one.parameters,
            "seconds": one.seconds,
        }
        for one in in_order(found)
    ]
