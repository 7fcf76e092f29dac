"""Whether domain-adaptive pretraining is likely to pay, by one rule with a stated basis.

Gururangan et al. (2020, arXiv:2004.10964, section 3) found the more to gain the less a domain resembles what the
checkpoint was pretrained on, and the least for news, whose text it guessed better than its own; the loss of the other
three domains stood 0.1 to 0.9 nats per token above it (their table 1). The rule: it pays if the checkpoint's own head
guesses the domain's text worse than general text, by 0.1 nats per token at least, with an interval above 0.
docs/domain.md holds the rule against measured gains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hftransfer.report.statistics import Interval

MARGIN = 0.1
"""Nats per token, about a tenth of the perplexity: the least of that paper's three domains above."""
WEAK_HEAD = 4.5
"""Nats per token of general text (a perplexity of 90): a head that guesses worse is hardly a language model's."""
NORMAL = 1.96


@dataclass(frozen=True)
class Forecast:
    """Whether adaptation is likely to pay.

    Attributes:
        pays: The rule's answer; "unknown" where something it needs is missing.
        margin: Loss on the domain's text minus loss on general text, nats per token.
        low: Lower end of its 95 % interval.
        high: Upper end.
        reason: In words.
        weak_head: Whether the head hardly guesses general text, so that the answer rests on little.
    """

    pays: Literal["yes", "no", "unknown"]
    margin: float | None
    low: float | None
    high: float | None
    reason: str
    weak_head: bool = False


def forecast(sources: Mapping[str, Any], losses: Mapping[str, Interval], language: str) -> Forecast:
    """Apply the rule.

    Args:
        sources: The sources there are, by name.
        losses: Loss of each under the checkpoint's head; none without one.
        language: Why there is none.
    """
    if not losses:
        return Forecast("unknown", None, None, None, f"the checkpoint's language-modelling loss was {language}")
    if "reference" not in sources:
        return Forecast("unknown", None, None, None, "there is no general text to compare the loss with")
    domain = "deployment" if "deployment" in sources else "training"
    asked, general = losses[domain], losses["reference"]
    margin = asked.value - general.value
    half = NORMAL * math.hypot(asked.standard_error, general.standard_error)
    pays: Literal["yes", "no"] = "yes" if margin >= MARGIN and margin - half > 0 else "no"
    how = "worse than" if pays == "yes" else "as well as" if margin > -MARGIN else "better than"
    if pays == "no" and margin >= MARGIN:
        how = "not surely worse than"
    reason = (
        f"the checkpoint guesses {domain} text {how} general text "
        f"({margin:+.2f} nats per token, 95 % interval {margin - half:+.2f} to {margin + half:+.2f})"
    )
    return Forecast(pays, margin, margin - half, margin + half, reason, general.value > WEAK_HEAD)
