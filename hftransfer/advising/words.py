"""Advice in words, tables and charts; and as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from hftransfer.advise.fitted import KNOWLEDGE
from hftransfer.advising import Advice, Option
from hftransfer.report.page import duration, size
from hftransfer.report.svg import NONE
from hftransfer.verdicts import Estimate, IntervalChart, Line, LineChart, Verdict, VerdictTable

KEY = "advice"


def verdict_of(advice: Advice) -> Verdict:
    """The advice as a run keeps it and as the command prints it."""
    return Verdict(
        key=KEY,
        title="Which strategy suits the data",
        words=sentences(advice),
        tables=[_facts(advice), *([_layers(advice)] if advice.reading else []), _options(advice)],
        charts=_charts(advice),
    )


def sentences(advice: Advice) -> list[str]:
    """The advice in sentences, the recommendation first."""
    found = []
    if advice.chosen is not None:
        prediction, candidate = advice.chosen.prediction, advice.chosen.candidate
        found.append(
            f"Recommended: {candidate.name} ({prediction.score:.3f}, 95 % interval {prediction.low:.3f} to "
            f"{prediction.high:.3f}). {_capital(advice.reason)}."
        )
    agrees = advice.chosen is not None and advice.chosen.candidate.type == advice.tutorial[0]
    also = "the same" if agrees else advice.tutorial[0]
    found.append(f"The tutorial's table says {also}: {advice.tutorial[1]}.")
    if advice.chosen is not None:
        found += advice.changes or ["Neither other amounts of data nor the error of the measurement would change this."]
        whole = _full_fine_tuning(advice)
        if whole is not None and whole.cost is not None:
            found.append(
                f"The advice took {duration(advice.seconds)}; one full fine-tuning would take about "
                f"{duration(whole.cost.seconds)}."
            )
    return [*found, *advice.notes]


def as_data(advice: Advice) -> dict[str, Any]:
    """The advice as plain data, for --json."""
    reading = None if advice.reading is None else {**asdict(advice.reading)}
    if reading is not None:
        del reading["right_N"]
    return {
        "facts": asdict(advice.facts),
        "reading": reading,
        "options": [
            {
                "name": one.candidate.name,
                "strategy": dict(one.candidate.strategy),
                "score": one.prediction.score,
                "interval": [one.prediction.low, one.prediction.high],
                "seconds": None if one.cost is None else one.cost.seconds,
                "memory_bytes": None if one.cost is None else one.cost.memory_bytes,
            }
            for one in advice.options
        ],
        "recommended": None if advice.chosen is None else advice.chosen.candidate.name,
        "words": sentences(advice),
        "rules": {"sizes": list(KNOWLEDGE.sizes), "source": KNOWLEDGE.source},
        "encoded_rows": advice.encoded,
        "seconds": advice.seconds,
    }


def _facts(advice: Advice) -> VerdictTable:
    facts, rows = advice.facts, []
    rows.append(["examples to train on, to validate on", f"{facts.train_examples:,}, {facts.validation_examples:,}"])
    if facts.classes:
        few, many = (pick(facts.classes.items(), key=lambda item: item[1]) for pick in (min, max))
        rows.append(
            ["classes, rarest and most frequent", f"{len(facts.classes)}, {few[0]} {few[1]:,}, {many[0]} {many[1]:,}"]
        )
        if facts.balance is not None and facts.problem == "single_label":
            rows.append(["balance (entropy, 1 is even)", f"{facts.balance:.2f}"])
    mean, median, high, longest = facts.lengths
    rows.append(["tokens: mean, median, 95 %, longest", f"{mean:.0f}, {median}, {high}, {longest}"])
    rows.append([f"cut off at {facts.max_length} tokens", f"{facts.truncated:,}"])
    rows.append(["texts that occur before", f"{facts.duplicates:,}"])
    wording = facts.wording
    rows.append(
        ["tokens per word, words that are one token", f"{wording.tokens_per_word:.2f}, {wording.whole_words:.0%}"]
    )
    rows.append(["unknown tokens", f"{wording.unknown:.2%}"])
    return VerdictTable(caption="The data", head=["", "found"], rows=rows)


def _layers(advice: Advice) -> VerdictTable:
    assert advice.reading is not None
    reading = advice.reading
    rows = [
        [
            ("embeddings" if not layer.layer else str(layer.layer))
            + (" (best)" if layer.layer == reading.best_layer.layer else ""),
            f"{layer.probe:.3f}",
            f"{layer.neighbours:.3f}",
            f"{layer.logme:.3f}",
            _number(layer.h_score),
        ]
        for layer in reading.layers
    ]
    rows.append(["one answer for all", f"{reading.chance:.3f}", "", "", ""])
    name = reading.score_name
    return VerdictTable(
        caption=f"What frozen layers hold ({name}, cross-validated; ± {reading.deviation:.3f} standard error)",
        head=["layer", "linear head", "neighbours", "LogME", "H-score"],
        rows=rows,
    )


def _options(advice: Advice) -> VerdictTable:
    rows = [
        [
            one.candidate.name + ("  recommended" if one is advice.chosen else ""),
            _number(one.prediction.score),
            NONE if one.prediction.low is None else f"{one.prediction.low:.3f} to {one.prediction.high:.3f}",
            NONE if one.cost is None else duration(one.cost.seconds),
            NONE if one.cost is None else size(one.cost.memory_bytes),
        ]
        for one in advice.options
    ]
    return VerdictTable(
        caption="What strategies would come to",
        head=["strategy", "predicted", "95 % interval", "time", "memory"],
        rows=rows,
    )


def _charts(advice: Advice) -> list[LineChart | IntervalChart]:
    reading = advice.reading
    if reading is None:
        return []
    layers = [(float(layer.layer), layer.probe) for layer in reading.layers]
    near = [(float(layer.layer), layer.neighbours) for layer in reading.layers]
    curve: list[tuple[float, float | None]] = [(float(count), score) for count, score in reading.curve]
    estimates = [
        Estimate(name=one.candidate.name, value=one.prediction.score, low=one.prediction.low, high=one.prediction.high)
        for one in advice.options
        if one.prediction.score is not None
    ]
    estimates.append(Estimate(name="linear head, frozen features", value=reading.score, is_baseline=True))
    return [
        IntervalChart(
            title="Predicted scores",
            description="The score that each strategy is predicted to reach, with its 95 % interval.",
            estimates=estimates,
            label=reading.score_name,
        ),
        LineChart(
            title="What frozen layers hold",
            description="Cross-validated score of a linear head and of nearest neighbours, by layer.",
            lines=[
                Line(name="linear head", points=list(layers), ringed=float(reading.best_layer.layer)),
                Line(name="nearest neighbours", points=list(near)),
            ],
            x_label="layer",
            y_label=reading.score_name,
        ),
        LineChart(
            title="Learning curve of the linear head",
            description="Cross-validated score of a linear head on the last layer, by number of training rows.",
            lines=[Line(name="linear head", points=curve)],
            x_label="training rows",
            y_label=reading.score_name,
        ),
    ]


def _full_fine_tuning(advice: Advice) -> Option | None:
    return next((one for one in advice.options if one.candidate.type == "full_fine_tuning"), None)


def _number(value: float | None) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.3f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
