"""Which weights a training holds near their pretrained values, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hftransfer.errors import RecipeError
from hftransfer.models.backbone import backbone_parameters
from hftransfer.strategies.adapters import is_linear
from hftransfer.strategies.freezing import transformers_model
from hftransfer.training.retention import Anchor, Retention

if TYPE_CHECKING:
    from hftransfer.training.loop import Training


def build_retention(training: Training) -> Retention:
    """What the recipe's `optim.retain` holds; called while the model still has its pretrained weights.

    A resumed training loads them anew, so no checkpoint holds them. L2-SP holds all that the checkpoint brought and
    that learns; EWC what has a Fisher information, which is the backbone; mixout the matrices of the blocks.

    Raises:
        RecipeError: If nothing of that learns.
    """
    optim = training.recipe.optim
    if optim.retain == "none":
        return Retention()
    model = transformers_model(training.model)
    named = dict(training.model.named_parameters())
    backbone = {id(weight): name for name, weight in backbone_parameters(model, training.anatomy).items()}
    matrices = _matrices(model, training.anatomy.blocks)
    anchors: dict[int, Anchor] = {}
    # In the order of the model: mixout draws for one after another.
    for name in training.learned_names:
        weight = named[name]
        if name in training.fresh:
            continue
        if optim.retain == "mixout" and id(weight) not in matrices:
            continue
        importance = training.importance.get(backbone.get(id(weight), "")) if optim.retain == "ewc" else None
        if optim.retain == "ewc" and importance is None:
            continue
        anchors[id(weight)] = Anchor(weight, weight.detach().clone(), importance)
    if not anchors:
        raise RecipeError(
            f"nothing that {optim.retain} holds learns under {training.recipe.strategy.type}",
            where="optim.retain",
            fix="leave it out, or choose another strategy",
        )
    return Retention(optim.retain, optim.retain_strength or 0.0, anchors)


def _matrices(model: nn.Module, blocks: tuple[str, ...]) -> set[int]:
    """Ids of the weights of the blocks' matrix products."""
    modules = [module for path in blocks for module in model.get_submodule(path).modules()]
    return {id(module.weight) for module in modules if is_linear(module)}
