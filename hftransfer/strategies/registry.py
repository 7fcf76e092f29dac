"""From a strategy's settings or name to the strategy."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter

from hftransfer.errors import StrategyError
from hftransfer.strategies.base import Strategy
from hftransfer.strategies.bitfit import BitFit
from hftransfer.strategies.contrastive import Contrastive
from hftransfer.strategies.feature_extraction import FeatureExtraction
from hftransfer.strategies.full_fine_tuning import FullFineTuning
from hftransfer.strategies.gradual_unfreezing import GradualUnfreezing
from hftransfer.strategies.ia3 import Ia3
from hftransfer.strategies.lora import Lora
from hftransfer.strategies.lp_ft import LpFt
from hftransfer.strategies.top_layers import TopLayers
from hftransfer.strategy_settings import StrategySection, StrategySettings

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.type: strategy
    for strategy in (
        FeatureExtraction,
        TopLayers,
        GradualUnfreezing,
        FullFineTuning,
        Lora,
        Ia3,
        BitFit,
        LpFt,
        Contrastive,
    )
}


def build_strategy(settings: StrategySection) -> Strategy:
    """The strategy that these settings of a recipe describe."""
    return STRATEGIES[settings.type](settings)  # type: ignore[attr-defined]


def make_strategy(type: str, **settings: Any) -> Strategy:
    """The strategy of this name, e.g. `make_strategy("lora", r=16)`.

    Raises:
        StrategyError: If there is no such strategy.
        pydantic.ValidationError: If a setting is unknown or out of range.
    """
    if type not in STRATEGIES:
        near = get_close_matches(type, STRATEGIES, n=1)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(STRATEGIES)}"
        raise StrategyError(f"no strategy is called {type!r}", fix=fix)
    adapter: TypeAdapter[Any] = TypeAdapter(StrategySettings)
    return build_strategy(adapter.validate_python({"type": type, **settings}))
