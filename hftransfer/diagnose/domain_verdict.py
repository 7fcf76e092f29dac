"""The diagnosis of domains in words, tables and charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hftransfer.diagnose.domain import Domain, Pair, Source
from hftransfer.verdicts import Chart, Estimate, IntervalChart, Verdict, VerdictTable

CLEAR, FAR = 0.5, 1.5
"""Proxy A-distances from which on domains are called clearly apart, and nearly separable (errors of 37 and 12 %)."""
FRAGMENTED, UNKNOWN = 1.5, 0.01
"""Ratio of pieces per word, and share of unknown pieces, that a reader should know of."""
LEVEL, LABELS_MOVED, LENGTHS_MOVED = 0.01, 0.1, 0.2
"""Shifts are told where the test is below the level and the shift at least so large."""
NAMES = {"training": "training text", "deployment": "deployment text", "reference": "general text"}


def verdict_of(domain: Domain) -> Verdict:
    """The verdict: distance first, then what explains it, then whether adaptation is likely to pay."""
    own = domain.pair("training", "deployment")
    words = [_distance_words(own or domain.pairs[0])]
    words += _fragmentation_words(domain)
    shifts = [] if own is None else _shift_words(own)
    words += shifts
    words.append(_forecast_words(domain))
    if own is not None:
        words += [_distance_words(pair) for pair in domain.pairs if pair is not own]
    mismatch = own is not None and own.distance.distinguishable and own.distance.value >= CLEAR
    cut = any(source.unknown_share >= UNKNOWN for source in domain.sources.values()) or _ratio(domain) >= FRAGMENTED
    return Verdict(
        key="domain",
        title="Domain mismatch",
        words=words,
        warns=bool(mismatch or shifts or cut or (domain.forecast.pays == "yes" and not domain.forecast.weak_head)),
        tables=[_source_table(domain), _pair_table(domain.pairs)],
        charts=_charts(domain),
    )


def _distance_words(pair: Pair) -> str:
    distance, near = pair.distance, pair.neighbours
    if not distance.distinguishable:
        how = "cannot be told from"
    elif distance.value < CLEAR:
        how = "is a little apart from"
    else:
        how = "is clearly apart from" if distance.value < FAR else "is almost separable from"
    known, asked = NAMES[pair.first], NAMES[pair.second]
    return (
        f"{asked.capitalize()} {how} {known} in this checkpoint's space: proxy A-distance {distance.value:.2f} "
        f"(95 % interval {distance.low:.2f} to {distance.high:.2f}; 0 is one domain, 2 two; halves of one source have "
        f"{distance.baseline:.2f}), and {near.far:.0%} of it lies farther from its nearest {known} than 95 % of that "
        f"lies from its own (5 % within one domain)."
    )


def _ratio(domain: Domain) -> float:
    """Pieces per word of the domain's text over those of what it is compared with; the largest of both comparisons."""
    per_word = {name: source.pieces_per_word for name, source in domain.sources.items()}
    pairs = [(one.first, one.second) for one in domain.pairs]
    return max(per_word[second] / max(per_word[first], 1e-9) for first, second in pairs)


def _fragmentation_words(domain: Domain) -> list[str]:
    cuts = ", ".join(f"{source.pieces_per_word:.2f} in {NAMES[name]}" for name, source in domain.sources.items())
    words = [f"The tokenizer cuts a word into so many pieces on average: {cuts}."]
    lost = {name: source.unknown_share for name, source in domain.sources.items() if source.unknown_share >= UNKNOWN}
    if lost:
        shares = ", ".join(f"{share:.1%} in {NAMES[name]}" for name, share in lost.items())
        words.append(f"Of these pieces the model sees nothing, since they are unknown to it: {shares}.")
    return words


def _shift_words(pair: Pair) -> list[str]:
    words = []
    if pair.label is not None and pair.label.p_value < LEVEL and pair.label.size >= LABELS_MOVED:
        what = f"{pair.label.test} {pair.label.statistic:.0f}, p {_p(pair.label.p_value)}"
        words.append(f"Labels are distributed differently: total variation {pair.label.size:.2f} ({what}).")
    if pair.length.p_value < LEVEL and pair.length.size >= LENGTHS_MOVED:
        what = f"Kolmogorov-Smirnov {pair.length.size:.2f}, p {_p(pair.length.p_value)}"
        words.append(f"Texts are of other lengths: {what}.")
    return words


def _forecast_words(domain: Domain) -> str:
    found = domain.forecast
    unknown = "Whether domain-adaptive pretraining pays cannot be foretold"
    if found.weak_head:
        rule = {"yes": "speaks for it", "no": "speaks against it", "unknown": "says nothing"}[found.pays]
        weak = "the head hardly guesses general text either, and with such a head the rule was not confirmed"
        return f"{unknown}: {weak}. The rule {rule}: {found.reason}."
    said = {
        "yes": "Domain-adaptive pretraining is likely to pay",
        "no": "Domain-adaptive pretraining is not likely to pay",
        "unknown": unknown,
    }[found.pays]
    return f"{said}: {found.reason}."


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _source_table(domain: Domain) -> VerdictTable:
    rows = []
    for name, source in domain.sources.items():
        rows.append(
            [
                NAMES[name],
                f"{source.texts:,} of {source.total:,}",
                f"{source.median_length:.0f}",
                f"{source.pieces_per_word:.3f}",
                f"{source.unknown_share:.2%}",
                *_loss_cells(source),
            ]
        )
    return VerdictTable(
        caption=f"The texts. Guessed by the checkpoint's own head: {domain.language}.",
        head=["source", "texts", "tokens, median", "pieces per word", "unknown pieces", "nats per token", "perplexity"],
        rows=rows,
    )


def _loss_cells(source: Source) -> list[str]:
    if source.loss is None:
        return ["", ""]
    loss = source.loss
    return [f"{loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f})", f"{math.exp(loss.value):,.1f}"]


def _pair_table(pairs: Sequence[Pair]) -> VerdictTable:
    head = ["measure", *(f"{NAMES[pair.second]} against {NAMES[pair.first]}" for pair in pairs)]

    def shift(pair: Pair) -> str:
        if pair.label is None:
            return "no labels"
        note = f"; {pair.label.note}" if pair.label.note else ""
        return f"{pair.label.size:.3f} ({pair.label.test} {pair.label.statistic:.1f}, p {_p(pair.label.p_value)}{note})"

    measures = {
        "proxy A-distance": lambda one: f"{one.distance.value:.3f} ({one.distance.low:.3f} to {one.distance.high:.3f})",
        "the same, halves of one source": lambda one: (
            f"{one.distance.baseline:.3f} (up to {one.distance.baseline_high:.3f})"
        ),
        "error of the domain classifier": lambda one: f"{one.distance.error:.1%}",
        "nearest neighbour, median cosine distance": lambda one: f"{one.neighbours.median:.4f}",
        "the same within the known source": lambda one: f"{one.neighbours.own_median:.4f}",
        "texts without a near neighbour (0.05 expected)": lambda one: f"{one.neighbours.far:.3f}",
        "most frequent words shared": lambda one: f"{one.overlap.top:.1%} of {one.overlap.compared:,}",
        "running words unseen": lambda one: f"{one.overlap.unseen:.1%}",
        "lengths, Kolmogorov-Smirnov": lambda one: f"{one.length.size:.3f} (p {_p(one.length.p_value)})",
        "labels, total variation": shift,
    }
    rows = [[name, *(cell(pair) for pair in pairs)] for name, cell in measures.items()]
    return VerdictTable(caption="How the sources differ, with 95 % intervals over texts.", head=head, rows=rows)


def _charts(domain: Domain) -> list[Chart]:
    estimates = []
    for pair in domain.pairs:
        name = f"{pair.second} against {pair.first}"
        one = pair.distance
        estimates.append(Estimate(name=name, value=one.value, low=one.low, high=one.high))
        estimates.append(Estimate(name="halves of one of them", value=one.baseline, is_baseline=True))
    charts: list[Chart] = [
        IntervalChart(
            title="Proxy A-distance",
            description="How well a linear classifier on frozen embeddings tells the sources apart.",
            estimates=estimates,
            label="0: one domain, 2: two domains",
        )
    ]
    losses = {name: source.loss for name, source in domain.sources.items() if source.loss is not None}
    if losses:
        charts.append(
            IntervalChart(
                title="Loss of the checkpoint's language model",
                description="Nats per guessed token of each source; lower is better known.",
                estimates=[
                    Estimate(name=NAMES[name], value=loss.value, low=loss.low, high=loss.high)
                    for name, loss in losses.items()
                ],
                label="nats per token",
            )
        )
    return charts
