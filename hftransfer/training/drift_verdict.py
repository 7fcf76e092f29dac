"""The drift of a training as a verdict: what every run that touches the backbone says of itself."""

from __future__ import annotations

import math

from hftransfer.training.drift import Drift
from hftransfer.verdicts import Line, LineChart, Verdict, VerdictTable

KEY, TITLE = "forgetting", "Forgetting"
MOVED = 0.9
"""Below this CKA the relations between tokens are no longer those that the checkpoint knew."""


def of_drift(drift: Drift) -> Verdict:
    """The light verdict: how far the states of the run's own texts moved. What was lost is not measured by that."""
    return Verdict(
        key=KEY,
        title=TITLE,
        words=[
            *words(drift),
            "Drift on the run's own texts says how much changed, not whether anything was lost: `hftransfer diagnose "
            "forgetting` measures that on general text or reference tasks.",
        ],
        tables=[table(drift)],
        charts=[chart(drift)],
    )


def words(drift: Drift) -> list[str]:
    """The drift in sentences."""
    known = [(value, depth) for value, depth in zip(drift.cka, drift.depths, strict=True) if not math.isnan(value)]
    if not known:
        return ["The states of the backbone could not be compared: they are constant."]
    least, depth = min(known)
    cosine = drift.cosine[drift.depths.index(depth)]
    where = "the embeddings" if depth == 0 else f"depth {depth} of {drift.depths[-1]}"
    moved = [at for value, at in known if value < MOVED]
    found = [
        f"The training moved the backbone's states most at {where}: linear CKA {least:.2f} with those before, mean "
        f"cosine {cosine:.2f} (1 = unchanged; {drift.tokens:,} tokens)."
    ]
    if moved:
        found.append(f"CKA is below {MOVED} at depths {', '.join(map(str, moved))}.")
    return found


def table(drift: Drift) -> VerdictTable:
    """The drift by depth."""
    rows = zip(drift.depths, drift.cka, drift.cosine, strict=True)
    return VerdictTable(
        caption="States before and after the training, by depth (0 = embeddings); 1 = unchanged",
        head=["depth", "linear CKA", "mean cosine"],
        rows=[[str(depth), f"{cka:.3f}", f"{cosine:.3f}"] for depth, cka, cosine in rows],
    )


def chart(drift: Drift) -> LineChart:
    """A picture of it."""
    lines = []
    for name, values in (("linear CKA", drift.cka), ("mean cosine", drift.cosine)):
        points = [
            (depth, None if math.isnan(value) else value) for depth, value in zip(drift.depths, values, strict=True)
        ]
        lines.append(Line(name=name, points=points))
    return LineChart(
        title="Drift by depth",
        description="Likeness of the states before and after the training, by depth from the embeddings up.",
        lines=lines,
        x_label="depth",
        y_label="likeness to before",
    )
