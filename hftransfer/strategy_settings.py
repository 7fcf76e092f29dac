"""The settings of the strategies, and the base of every section of a recipe. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    # What was given stays out of messages: it may be a token that was put into the wrong place.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True
    )


class StrategySection(Section):
    """Base of the strategies' settings."""


class PlainStrategy(StrategySection):
    """The strategies without settings: the head alone, everything, or the bias terms (BitFit, arXiv:2106.10199)."""

    type: Literal["feature_extraction", "full_fine_tuning", "bitfit"] = Field(
        "full_fine_tuning", description="Name of the strategy."
    )


class TopLayers(StrategySection):
    """Train the head and the top k blocks: one stage with the boundary at L + 1 - k."""

    type: Literal["top_layers"] = Field("top_layers", description="Name of the strategy.")
    k: PositiveInt = Field(2, description="How many blocks learn, counted from the head down.")


class GradualUnfreezing(StrategySection):
    """Unfreeze from the head down, in descending stages (ULMFiT, arXiv:1801.06146)."""

    type: Literal["gradual_unfreezing"] = Field("gradual_unfreezing", description="Name of the strategy.")
    stages: Annotated[int, Field(ge=2)] = Field(
        4, description="Number of stages, spread evenly from the head to depth 0."
    )


class AdapterStrategy(StrategySection):
    """Base of the strategies that insert modules into frozen blocks."""

    merge: bool = Field(False, description="Fold what was trained into the weights and leave a plain model.")


class Lora(AdapterStrategy):
    """Low-rank adapters in frozen blocks (arXiv:2106.09685); the head is always trained and saved."""

    type: Literal["lora"] = Field("lora", description="Name of the strategy.")
    r: PositiveInt = Field(8, description="Rank of the adapters.")
    alpha: float | None = Field(None, gt=0, description="Scale numerator; derived: 2 r.")
    dropout: Fraction = Field(0.05, description="Dropout on the adapters' input.")
    targets: Literal["attention", "query_value", "all_linear"] | list[str] = Field(
        "all_linear", description="Which linear layers of the blocks get adapters, or a list of module name endings."
    )
    top_blocks: PositiveInt | None = Field(None, description="Adapt the top k blocks alone; all blocks when absent.")
    variant: Literal["lora", "dora", "rslora"] = Field(
        "lora",
        description="dora: weight-decomposed adapters (arXiv:2402.09353); rslora: scale by alpha / sqrt(r), not "
        "alpha / r (arXiv:2312.03732).",
    )


class Ia3(AdapterStrategy):
    """Learned rescaling of keys, values and feed-forward activations (IA3, arXiv:2205.05638)."""

    type: Literal["ia3"] = Field("ia3", description="Name of the strategy.")


class LpFt(StrategySection):
    """Linear probe, then fine-tune everything (arXiv:2202.10054): two stages."""

    type: Literal["lp_ft"] = Field("lp_ft", description="Name of the strategy.")
    probe_share: Rate = Field(0.3, lt=1.0, description="Share of the optimizer steps that trains the head alone.")


StrategySettings = Annotated[
    PlainStrategy | TopLayers | GradualUnfreezing | Lora | Ia3 | LpFt,
    Field(discriminator="type"),
]
