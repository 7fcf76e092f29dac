"""Strategy and Stage: a transfer strategy is a sequence of stages, each with its boundary.

The boundary is the lowest depth that learns. Below it parameters have `requires_grad=False` and modules stay in eval
mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy
from hftransfer.strategies import freezing
from hftransfer.strategies.param_groups import build_param_groups

if TYPE_CHECKING:
    from torch import nn

    from hftransfer.strategy_settings import StrategySection


Objective: TypeAlias = Literal["task", "pairs", "fit"]
"""What a stage minimises: the task's loss by steps; a contrastive loss over pairs of texts by steps (no head learns);
or the task's loss over all examples at once, in the single step that fits the head."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the training with one boundary.

    Attributes:
        name: What the summary calls it.
        boundary: The lowest depth that learns (0 = embeddings, 1..L = blocks, L + 1 = head).
        share: The stage's share of the optimizer steps; the shares of all stages add up to 1.
        shared_rate: The head learns at the body's rate, not at its own: it has been trained in an earlier stage.
        objective: What it minimises.
        steps: Its optimizer steps where they are fixed; its share is 0 then.
    """

    name: str
    boundary: int
    share: float = 1.0
    shared_rate: bool = False
    objective: Objective = "task"
    steps: int | None = None


class Strategy(ABC):
    """Decides which weights learn. Works in our loop, in transformers' Trainer and in a loop of your own.

    `model = strategy.apply(model)` inserts what must be inserted and enters the first stage;
    `strategy.param_groups(model, lr)` goes into an optimizer. A strategy with several stages needs `enter_stage` and a
    new optimizer for each of them.
    """

    type: ClassVar[str]
    probes_head: ClassVar[bool] = False
    """Whether some stage trains the head alone, on frozen features."""

    def __init__(self, settings: StrategySection) -> None:
        self.settings: Any = settings

    @abstractmethod
    def stages(self, anatomy: Anatomy) -> tuple[Stage, ...]:
        """The stages in order, for a model of this anatomy.

        Raises:
            StrategyError: If the settings do not fit the model.
        """

    def insert(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        """Insert trainable modules; most strategies insert none."""
        return model

    def learns(self, name: str, depth: int, stage: Stage, anatomy: Anatomy) -> bool:
        """Whether the parameter of this name and depth learns in this stage."""
        return depth >= stage.boundary

    def apply(self, model: nn.Module, anatomy: Anatomy | None = None) -> nn.Module:
        """Prepare a transformers model for this strategy and enter its first stage.

        Args:
            model: A transformers model with its task head.
            anatomy: Its anatomy, if it is known already.

        Returns:
            The model to train: the same object, or a PEFT model around it.

        Raises:
            AnatomyError: If the model's structure is not understood.
            StrategyError: If the strategy does not fit the model, or adapters are in it already.
        """
        if hasattr(model, "peft_config"):
            raise StrategyError(
                "the model has adapters already", where=type(model).__name__, fix="apply one strategy to a plain model"
            )
        anatomy = freezing.attach_anatomy(model, anatomy)
        stages = self.stages(anatomy)
        model = self.insert(model, anatomy)
        self.enter_stage(model, stages[0])
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        """The model to leave behind after training; adapters that are to be merged are merged here."""
        return model

    def enter_stage(self, model: nn.Module, stage: Stage) -> None:
        """Set `requires_grad` and the eval mode of what is frozen for this stage, in place."""
        anatomy = freezing.anatomy_of(model)
        freezing.set_boundary(model, stage.boundary, lambda name, depth: self.learns(name, depth, stage, anatomy))

    def param_groups(
        self,
        model: nn.Module,
        learning_rate: float,
        *,
        head_learning_rate: float | None = None,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
    ) -> list[dict[str, Any]]:
        """Optimizer groups of what learns now, with rates by depth and no decay on biases and norms.

        Args:
            model: The model that `apply` returned.
            learning_rate: Peak rate of the top block, of adapters and of a head without its own rate.
            head_learning_rate: Peak rate of the head.
            weight_decay: Decay of weight matrices.
            layer_decay: Factor per block, 1 for the same rate everywhere.
        """
        depths = freezing.parameter_depths(model)
        return build_param_groups(
            [
                (name, parameter, depths[name])
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            ],
            head_depth=freezing.anatomy_of(model).head_depth,
            learning_rate=learning_rate,
            head_learning_rate=head_learning_rate,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
        )


def head_stage(name: str, anatomy: Anatomy, share: float = 1.0) -> Stage:
    """A stage that trains the head alone.

    Raises:
        StrategyError: If the head has no weights of its own.
    """
    if not anatomy.head_parameters:
        raise StrategyError(
            f"the head of {anatomy.model_class} shares the weights of the embeddings and has none of its own to train "
            "alone",
            where=f"strategy.type {name}",
            fix="choose top_layers, full_fine_tuning or lora",
        )
    return Stage("head", anatomy.head_depth, share)


def shares(weights: Sequence[float]) -> list[float]:
    """Scale weights so that they add up to 1."""
    total = sum(weights)
    return [weight / total for weight in weights]
