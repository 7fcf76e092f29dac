"""Which weights a training leaves behind: the best evaluated, the last, their moving average, or a greedy soup.

The moving average after step t is the mean of all weights so far until that has a window's length, a tenth of the
training, and an exponential average with that time constant from then on:
`average += (weights - average) / min(t, window)`. A greedy soup (arXiv:2203.05482, recipe 1) takes the evaluated
weights from the best down and keeps each one whose mean with those kept before scores at least as well on validation
data.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hftransfer.caching.states import PlainInputs
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.training import distributed
from hftransfer.training.distributed import Weights, copy_weights, local_weights, restore

if TYPE_CHECKING:
    from hftransfer.training.loop import Training
    from hftransfer.training.trackers import RunLog

AVERAGED_SHARE = 0.1
"""The moving average's window, as a share of all steps."""
MOST_INGREDIENTS = 8
"""Evaluated weights that a soup may be made of, the best ones: each is a copy of what learns, in memory and in every
checkpoint."""

Ingredient = TypeVar("Ingredient")


def is_better(value: float, best: float | None, metric: str) -> bool:
    """Whether a score beats the best so far; an undefined one (NaN) is worse than every number."""
    if best is None or math.isnan(value) or math.isnan(best):
        return best is None or not math.isnan(value)
    return value > best if greater_is_better(metric) else value < best


def is_kept(value: float, best: float | None, metric: str) -> bool:
    """Whether weights with this score replace the best so far.

    Of equals, which few rows make often, the later weights are kept: more was learned, and the rate has fallen.
    """
    return is_better(value, best, metric) or value == best


class Kept:
    """The weights that one training keeps while it runs, and leaves in the model at its end.

    Args:
        training: Its recipe, model, `learned_names` and progress are read when they are needed.
    """

    def __init__(self, training: Training) -> None:
        # It owns this object: a cycle would keep its model in memory until the next full garbage collection.
        self.training: Training = weakref.proxy(training)
        self.rule = training.recipe.evaluation.keep
        self.weights: Weights = {}
        """The best weights, or the moving average."""
        self.ingredients: dict[int, Weights] = {}
        """Step -> evaluated weights."""
        self.chosen: list[int] = []
        """The steps whose weights are in the soup."""

    @property
    def most_copies(self) -> int:
        """How many copies of what learns are kept at most."""
        return {"last": 0, "soup": MOST_INGREDIENTS}.get(self.rule, 1)

    @property
    def window(self) -> float:
        """Steps over which the moving average forgets."""
        return max(1.0, AVERAGED_SHARE * self.training.total_steps)

    def facts(self) -> dict[str, Any]:
        """What was kept, for metrics.json."""
        if self.rule == "soup":
            return {"kept": self.rule, "kept_steps": self.chosen}
        return {"kept": self.rule, **({"averaging_window": self.window} if self.rule == "ema" else {})}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the average towards the weights after this step, counted from 1."""
        if self.rule != "ema":
            return
        now = local_weights(self.training.model, self.training.learned_names)
        if not self.weights:
            self.weights = {name: value.clone() for name, value in now.items()}
            return
        averages = [self.weights[name].to(value.device) for name, value in now.items()]
        torch._foreach_lerp_(averages, list(now.values()), 1.0 / min(step, self.window))
        self.weights = dict(zip(now, averages, strict=True))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the moving average for as long as the context lasts: that is what an evaluation judges."""
        if self.rule != "ema" or not self.weights:
            yield
            return
        model = self.training.model
        # What rests has been constant, and may be held in another precision just now.
        names = [name for name, weight in model.named_parameters() if weight.requires_grad and name in self.weights]
        live = {name: value.clone() for name, value in local_weights(model, names).items()}
        restore(model, {name: self.weights[name] for name in names})
        try:
            yield
        finally:
            restore(model, live)

    def after_evaluation(self, value: float, is_best: bool) -> None:
        """Keep a copy of weights that were evaluated just now, if the rule asks for it.

        Args:
            value: Their score.
            is_best: Whether no earlier weights have a better one.
        """
        training, step = self.training, self.training.progress.step
        if self.rule == "best" and is_best:
            self.weights = copy_weights(training.model, training.learned_names)
        if self.rule == "soup" and not math.isnan(value):
            self.ingredients[step] = copy_weights(training.model, training.learned_names)
            training.progress.ingredients[str(step)] = value
            for worst in self._by_score()[MOST_INGREDIENTS:]:
                del self.ingredients[worst], training.progress.ingredients[str(worst)]

    def _by_score(self) -> list[int]:
        """The steps of the ingredients, the best first, the later one of equals."""
        scores = self.training.progress.ingredients
        sign = -1 if greater_is_better(self.training.metric) else 1
        return sorted(self.ingredients, key=lambda step: (sign * scores[str(step)], -step))

    def shard(self) -> None:
        """Go on with this process's shards of everything: the model has been sharded."""
        model = self.training.model
        self.weights = distributed.own_shards(model, self.weights)
        self.ingredients = {step: distributed.own_shards(model, part) for step, part in self.ingredients.items()}

    def stored(self, *, keep: bool) -> Weights:
        """What a checkpoint holds of all this, whole, by name; ingredients by "step/name". Never changed afterwards.

        Args:
            keep: Whether this process needs it; all take part where the model is sharded.
        """
        model = self.training.model
        found = distributed.whole_weights(model, {} if self.rule == "soup" else self.weights, keep=keep)
        if self.rule == "ema":
            # The average goes on changing while a thread writes this.
            found = {name: value.detach().cpu().clone() for name, value in found.items()}
        for step, part in self.ingredients.items():
            whole = distributed.whole_weights(model, part, keep=keep)
            found |= {f"{step}/{name}": value for name, value in whole.items()}
        return found

    def load(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Go on with what `stored` gave."""
        if self.rule != "soup":
            self.weights = dict(stored)
            return
        for key, value in stored.items():
            step, _, name = key.partition("/")
            self.ingredients.setdefault(int(step), {})[name] = value

    def choose(self, log: RunLog) -> None:
        """Put the weights that are to be left behind into the model.

        Raises:
            Interrupted: If the run was asked to end while a soup was scored.
        """
        if self.rule == "soup" and self.ingredients:
            self.weights, score, self.chosen = greedy_soup(
                [(step, self.ingredients[step]) for step in self._by_score()], self._score, self.training.metric
            )
            steps = ", ".join(map(str, self.chosen))
            log.say(f"Soup of the weights of steps {steps}: validation {self.training.metric} {score:.4f}")
        if self.rule != "last":
            restore(self.training.model, self.weights)

    def _score(self, weights: Weights) -> float:
        """The validation score of weights, which are in the model afterwards."""
        training = self.training
        restore(training.model, weights)
        inputs = PlainInputs(training.task, training.validation)
        return training.validation_scores(training.model, inputs)[training.metric]


def greedy_soup(
    candidates: Sequence[tuple[Ingredient, Weights]], score: Callable[[Weights], float], metric: str
) -> tuple[Weights, float, list[Ingredient]]:
    """The mean of those candidates that do not make it worse, taken in order (arXiv:2203.05482, recipe 1).

    Args:
        candidates: Names and weights, the best first.
        score: Scores weights on validation data.
        metric: What the score is.

    Returns:
        The mean, its score, and the names of what is in it. It scores at least as well as the first candidate.
    """
    (first, soup), *others = candidates
    best, taken = score(soup), [first]
    for name, weights in others:
        share = 1.0 / (len(taken) + 1)
        tried = {key: torch.lerp(value, weights[key], share) for key, value in soup.items()}
        value = score(tried)
        if not is_better(best, value, metric):
            soup, best = tried, value
            taken.append(name)
    return soup, best, taken
