"""From what was measured to what each strategy would score, and to a choice.

The score of a strategy is that of the linear head on frozen features, moved by an amount that depends on the situation:

    logit(score) = logit(head) + weights . features(situation)

The weights of every kind of candidate come from trainings that were really done (`fitted.py`, made by
`python -m benchmarks.regret fit`), by ridge regression. Nothing here imports torch.

Shape legend: M trainings, Q features of a situation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.advise.candidates import Candidate

Vector = NDArray[np.float64]

LOWEST, HIGHEST = 0.02, 0.98
"""Scores outside are taken for these: a logit has no bounds."""
COMMON_PENALTY, OWN_PENALTY, CONSTANT_PENALTY = 1.0, 3.0, 0.3
"""Of the ridge regression: on what all kinds have in common, on what is a kind's own, and on constants. Fixed before
any regret was looked at."""
Z = 1.96
"""Deviations on both sides of an interval of 95 %, as everywhere in reports."""
MARGIN = 0.005
"""The cheaper candidate is chosen where the better one is not better by more than this."""
SMALL, MEDIUM = 1_000, 10_000
"""Below these numbers of examples the tutorial's table speaks of small and of medium data."""
FEATURES = ("constant", "size", "margin", "depth", "slope")


@dataclass(frozen=True)
class Situation:
    """What the prediction looks at.

    Attributes:
        train_examples: Rows to train on.
        chance: Score of one answer for all.
        head: Score of a linear head on the last layer.
        best_layer: That of the layer that a linear head reads best.
        slope: What a doubling of the data adds to the head's score.
        classes: For `candidates`.
    """

    train_examples: int
    chance: float
    head: float
    best_layer: float
    slope: float
    classes: int = 0

    def features(self, sizes: tuple[int, int] | None = None) -> NDArray[np.float64]:
        """The features (Q,), each of the order of 1.

        Args:
            sizes: Fewest and most examples that were tried; others are taken for these.
        """
        count = self.train_examples if sizes is None else min(max(self.train_examples, sizes[0]), sizes[1])
        return np.asarray(
            [
                1.0,
                math.log10(count / 300),
                logit(self.head) - logit(self.chance),
                logit(self.best_layer) - logit(self.head),
                10 * self.slope,
            ]
        )

    def at(self, train_examples: int) -> Situation:
        """The situation with another number of examples, as far as the learning curve tells it."""
        gain = self.slope * math.log2(train_examples / self.train_examples)
        moved = (min(max(score + gain, LOWEST), HIGHEST) for score in (self.head, self.best_layer))
        head, best = moved
        return replace(self, train_examples=train_examples, head=head, best_layer=best)


@dataclass(frozen=True)
class Weights:
    """What is known of one kind of candidate.

    Attributes:
        weights: Of the features.
        deviation: Of the predictions' errors, in logits, on data sets that the weights were not fitted to.
        trainings: How many trainings they come from.
    """

    weights: tuple[float, ...]
    deviation: float
    trainings: int


@dataclass(frozen=True)
class Knowledge:
    """What trainings have shown.

    Attributes:
        kinds: Kind -> weights.
        sizes: Fewest and most training examples among them.
        source: Where they were made, in words.
    """

    kinds: Mapping[str, Weights]
    sizes: tuple[int, int]
    source: str


@dataclass(frozen=True)
class Prediction:
    """What a candidate would score; None where nothing is known of its kind."""

    candidate: Candidate
    score: float | None
    low: float | None = None
    high: float | None = None


def logit(score: float) -> float:
    """Log-odds of a score, with its bounds."""
    inside = min(max(score, LOWEST), HIGHEST)
    return math.log(inside / (1 - inside))


def expit(value: float) -> float:
    """The inverse of `logit`."""
    return 1 / (1 + math.exp(-value))


def fit(situations: Sequence[Situation], kinds: Sequence[str], scores: Sequence[float]) -> dict[str, Vector]:
    """The weights (Q,) of every kind, by one ridge regression of the scores' logits over those of the head.

    The weights of a kind are what all kinds have in common and what is its own, and the latter is penalised more: how
    easy a data set is concerns all alike, and with few trainings a kind must not be told from another by chance.

    Args:
        situations: M situations.
        kinds: What was trained in each.
        scores: What it scored.
    """
    names = sorted(set(kinds))
    features_MQ = np.stack([situation.features() for situation in situations])
    own_MK = np.stack([[kind == name for name in names] for kind in kinds]).astype(np.float64)
    own = (own_MK[:, :, None] * features_MQ[:, None, :]).reshape(len(kinds), -1)
    design = np.concatenate([features_MQ, own], axis=1)
    target_M = np.asarray([logit(score) - logit(one.head) for one, score in zip(situations, scores, strict=True)])
    penalties_KQ = np.full((len(names) + 1, len(FEATURES)), OWN_PENALTY)
    penalties_KQ[0] = COMMON_PENALTY
    # A constant is learned from the first trainings on, a slope only from several.
    penalties_KQ[:, 0] = CONSTANT_PENALTY
    found = np.linalg.solve(design.T @ design + np.diag(penalties_KQ.ravel()), design.T @ target_M)
    common_Q, own_KQ = found[: len(FEATURES)], found[len(FEATURES) :].reshape(len(names), -1)
    return {name: common_Q + own_Q for name, own_Q in zip(names, own_KQ, strict=True)}


def predict(situation: Situation, candidate: Candidate, knowledge: Knowledge) -> Prediction:
    """What a candidate would score."""
    known = knowledge.kinds.get(candidate.kind)
    if known is None:
        return Prediction(candidate, None)
    middle = logit(situation.head) + float(np.dot(known.weights, situation.features(knowledge.sizes)))
    reach = Z * known.deviation
    return Prediction(candidate, expit(middle), expit(middle - reach), expit(middle + reach))


def choose(predictions: Sequence[Prediction]) -> Prediction:
    """The first, and so the simplest, that is within `MARGIN` of the best.

    Args:
        predictions: In the order of `candidates`; one at least has a score.
    """
    known = [one for one in predictions if one.score is not None]
    best = max(score for one in known if (score := one.score) is not None)
    return next(one for one in known if one.score is not None and one.score >= best - MARGIN)


def tutorial(train_examples: int, *, foreign: bool) -> tuple[str, str]:
    """What the usual table of transfer learning says: the strategy's type, and its row in words.

    Args:
        train_examples: Rows to train on.
        foreign: Whether the texts are unlike those of the checkpoint.
    """
    if foreign:
        return "full_fine_tuning", "different data: fine-tune everything"
    if train_examples < SMALL:
        return "feature_extraction", f"small (below {SMALL:,}) and similar: feature extraction"
    if train_examples < MEDIUM:
        return "top_layers", f"medium (below {MEDIUM:,}) and similar: the top layers"
    return "full_fine_tuning", f"large (from {MEDIUM:,} on): fine-tune everything"


def change_of_mind(situation: Situation, deviation: float, choose_at: Any, chosen: Candidate) -> list[str]:
    """What would lead to another strategy: more or fewer examples, or a head that is better or worse by its error.

    Args:
        situation: As it is.
        deviation: Standard error of the head's score.
        choose_at: Situation -> the candidate that would be chosen.
        chosen: The one that is.
    """
    found = []
    for factor, words in ((0.25, "a quarter of"), (4, "four times"), (16, "sixteen times")):
        count = round(situation.train_examples * factor)
        if count < 20:
            continue
        other = choose_at(situation.at(count))
        if other.strategy != chosen.strategy:
            found.append(f"With {words} the examples ({count:,}) it would be {other.name}.")
            if factor > 1:
                break
    for sign, words in ((-2, "worse"), (2, "better")):
        head = min(max(situation.head + sign * deviation, LOWEST), HIGHEST)
        best = min(max(situation.best_layer + sign * deviation, LOWEST), HIGHEST)
        other = choose_at(replace(situation, head=head, best_layer=best))
        if other.strategy != chosen.strategy:
            found.append(
                f"If the frozen features were {words} than measured by two standard errors ({head:.2f}), it would be "
                f"{other.name}."
            )
    return found
