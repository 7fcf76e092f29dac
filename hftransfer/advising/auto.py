"""`--strategy.type auto`: the advice becomes the recipe's strategy, with its reason as origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hftransfer.advising import Advice
from hftransfer.advising.words import verdict_of
from hftransfer.errors import RecipeError
from hftransfer.recipe import Recipe
from hftransfer.strategies import make_strategy
from hftransfer.verdicts import Verdict


@dataclass(frozen=True)
class Decision:
    """What was decided, in a form that goes to other processes.

    Attributes:
        strategy: Settings of the strategy, `type` included.
        reason: Where they come from.
        verdicts: The advice, to be kept.
    """

    strategy: Mapping[str, Any]
    reason: str
    verdicts: tuple[Verdict, ...] = ()


def decide(advice: Advice) -> Decision:
    """What the advice comes to.

    Raises:
        RecipeError: If it recommends nothing.
    """
    if advice.chosen is None:
        raise RecipeError(
            f"no advice for {advice.facts.task}", where="strategy.type auto", fix="name a strategy, such as lora"
        )
    candidate = advice.chosen.candidate
    reason = f"advisor: {advice.chosen.prediction.score:.3f} predicted"
    return Decision(dict(candidate.strategy), reason, (verdict_of(advice),))


def earlier_decision(earlier: Recipe) -> Decision:
    """What a run that goes on began with."""
    return Decision(earlier.strategy.model_dump(), "advisor: of the run that goes on")


def decided(recipe: Recipe, given: Mapping[str, str], decision: Decision) -> tuple[Recipe, dict[str, str]]:
    """The recipe with the decision in it, and where its settings come from; what the user has set stays.

    Args:
        recipe: With the strategy `auto`.
        given: Dotted name -> origin of what the user has set.
        decision: What was decided.
    """
    settings = make_strategy(**decision.strategy).settings
    origins = {name: origin for name, origin in given.items() if not name.startswith("strategy.")}
    origins |= {f"strategy.{name}": decision.reason for name in decision.strategy}
    return recipe.model_copy(update={"strategy": settings}), origins
