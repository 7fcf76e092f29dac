"""hftransfer: transfer learning for text models on Hugging Face.

    from hftransfer import Recipe, finetune
    run = finetune(Recipe(checkpoint="google-bert/bert-base-uncased", strategy="lora", data={"train": "train.csv"}))

Names are loaded when they are first used, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftransfer import metrics
    from hftransfer.errors import UserError
    from hftransfer.finetuning import check, finetune
    from hftransfer.inference import evaluate, predict
    from hftransfer.models.anatomy import Anatomy, analyse
    from hftransfer.recipe import Recipe
    from hftransfer.run import Run
    from hftransfer.strategies import Stage, Strategy, make_strategy

__version__ = "0.1.0"
__all__ = [
    "Anatomy",
    "Recipe",
    "Run",
    "Stage",
    "Strategy",
    "UserError",
    "analyse",
    "check",
    "evaluate",
    "finetune",
    "make_strategy",
    "metrics",
    "predict",
]

_HOMES = {
    "Anatomy": "models.anatomy",
    "Recipe": "recipe",
    "Run": "run",
    "Stage": "strategies",
    "Strategy": "strategies",
    "UserError": "errors",
    "analyse": "models.anatomy",
    "check": "finetuning",
    "evaluate": "inference",
    "finetune": "finetuning",
    "make_strategy": "strategies",
    "predict": "inference",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name == "metrics":
        return importlib.import_module("hftransfer.metrics")
    if name not in _HOMES:
        raise AttributeError(f"module 'hftransfer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hftransfer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
