"""`--strategy.type auto`: the advice becomes the recipe's strategy, with its reason as origin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hftransfer.advising import Advice
from hftransfer.advising.words import verdict_of
from hftransfer.errors import RecipeError, UserError
from hftransfer.recipe import Recipe
from hftransfer.strategies import make_strategy
from hftransfer.verdicts import Verdict

if TYPE_CHECKING:
    from accelerate import Accelerator

EPOCHS_AND_BATCH = ("num_train_epochs", "per_device_train_batch_size")


@dataclass(frozen=True)
class Decision:
    """What was decided, in a form that goes to other processes.

    Attributes:
        strategy: Settings of the strategy, `type` included.
        optim: Optimisation settings.
        reason: Where they come from.
        verdicts: The advice, to be kept.
    """

    strategy: Mapping[str, Any]
    optim: Mapping[str, Any]
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
    return Decision(dict(candidate.strategy), dict(candidate.optim), reason, (verdict_of(advice),))


def agree(accelerator: Accelerator, decide_here: Callable[[], Decision]) -> Decision:
    """Decide on the main process, and let all others know, an error included.

    Args:
        accelerator: The processes.
        decide_here: Makes the decision.

    Raises:
        UserError: On all processes what was raised on the main one.
    """
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            shared = [decide_here()]
        except UserError as error:
            shared = [(type(error), error.what, error.where, error.fix)]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(shared)
    if isinstance(shared[0], Decision):
        return shared[0]
    kind, what, where, fix = shared[0]
    raise kind(what, where=where, fix=fix)


def earlier_decision(earlier: Recipe) -> Decision:
    """What a run that goes on began with."""
    optim = {name: getattr(earlier.optim, name) for name in EPOCHS_AND_BATCH}
    return Decision(earlier.strategy.model_dump(), optim, "advisor: of the run that goes on")


def decided(recipe: Recipe, given: Mapping[str, str], decision: Decision) -> tuple[Recipe, dict[str, str]]:
    """The recipe with the decision in it, and where its settings come from; what the user has set stays.

    Args:
        recipe: With the strategy `auto`.
        given: Dotted name -> origin of what the user has set.
        decision: What was decided.
    """
    optim = {name: value for name, value in decision.optim.items() if f"optim.{name}" not in given}
    settings = make_strategy(**decision.strategy).settings
    sections = {"strategy": settings, "optim": recipe.optim.model_copy(update=optim)}
    origins = {name: origin for name, origin in given.items() if not name.startswith("strategy.")}
    origins |= {f"strategy.{name}": decision.reason for name in decision.strategy}
    origins |= {f"optim.{name}": "advisor: enough steps of few examples" for name in optim}
    return recipe.model_copy(update=sections), origins
