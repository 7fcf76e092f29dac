"""What a run says before and after the training: the recipe with origins, what learns, the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hftransfer.recipe import Recipe
from hftransfer.strategies import Strategy
from hftransfer.training.defaults import Origins, flatten
from hftransfer.training.schedule import StageSteps

if TYPE_CHECKING:
    from torch import nn

# Shown whatever their origin; everything else only when somebody set it.
ALWAYS_SHOWN = (
    "checkpoint",
    "task.type",
    "task.problem",
    "task.pooling",
    "strategy.type",
    "data.max_length",
    "optim.learning_rate",
    "optim.head_learning_rate",
    "optim.num_train_epochs",
    "optim.per_device_train_batch_size",
    "optim.weight_decay",
    "optim.warmup_ratio",
    "optim.lr_scheduler_type",
    "optim.layer_decay",
    "evaluation.metric",
    "evaluation.keep",
    "output_dir",
    "seed",
)


def recipe_table(recipe: Recipe, origins: Origins) -> Table:
    """Every value that matters, with where it comes from."""
    table = Table(title="Recipe", title_justify="left", show_edge=False)
    table.add_column("setting")
    table.add_column("value", overflow="fold")
    table.add_column("origin", overflow="fold")
    for name, value in flatten(recipe).items():
        if value is not None and (name in ALWAYS_SHOWN or origins.get(name, "default") != "default"):
            table.add_row(name, _show(value), origins.get(name, "default"))
    return table


def strategy_table(strategy: Strategy, model: nn.Module, stages: Sequence[StageSteps], groups: Sequence[Any]) -> Table:
    """What learns in each stage: depths, number of parameters, peak rates.

    Args:
        strategy: The strategy.
        model: The model that it was applied to; it is left in the first stage.
        stages: The stages with their steps.
        groups: The optimizer groups of each stage.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    table = Table(title=f"What learns ({strategy.type}, {total:,} parameters)", title_justify="left", show_edge=False)
    for name in ("stage", "steps", "boundary", "depths that learn"):
        table.add_column(name)
    table.add_column("parameters", justify="right")
    table.add_column("peak rates")
    for current, stage_groups in zip(stages, groups, strict=True):
        count = sum(parameter.numel() for group in stage_groups for parameter in group["params"])
        depths = sorted({group["depth"] for group in stage_groups})
        rates = sorted({group["lr"] for group in stage_groups})
        table.add_row(
            current.stage.name,
            f"{current.start}-{current.end}",
            str(current.stage.boundary),
            f"{depths[0]}-{depths[-1]}" if len(depths) > 1 else str(depths[0]),
            f"{count:,} ({count / total:.2%})",
            "fitted in one step" if current.stage.objective == "fit" else _range(rates),
        )
    return table


def _range(rates: Sequence[float]) -> str:
    return f"{rates[0]:.1e} to {rates[-1]:.1e}" if len(rates) > 1 else f"{rates[0]:.1e}"


def cache_line(facts: Mapping[str, float]) -> str:
    """How often states were found in the feature cache, and the time that this saved; empty where none was used.

    Args:
        facts: What the stages have counted.
    """
    served, recomputed = (int(facts.get(f"cache_{name}_rows", 0)) for name in ("served", "recomputed"))
    rows = served + recomputed
    if not rows:
        return ""
    saved = facts["cache_saved_seconds"]
    time = f"{abs(saved):.1f} s saved" if saved >= 0 else f"encoding took {-saved:.1f} s more than they saved"
    return f"feature cache: states found for {served / rows:.1%} of {rows:,} rows, {time}"


def score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of each split, side by side."""
    table = Table(title="Scores", title_justify="left", show_edge=False)
    table.add_column("metric")
    for split in scores:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for of_split in scores.values() for name in of_split):
        table.add_row(name, *(f"{of_split[name]:.4f}" if name in of_split else "" for of_split in scores.values()))
    return table


def seed_table(seeds: Mapping[str, Any], metric: str) -> Table:
    """The scores of every seed, and their mean and spread.

    Args:
        seeds: As in metrics.json.
        metric: The score that chose.
    """
    table = Table(title=f"Seeds ({metric})", title_justify="left", show_edge=False)
    table.add_column("seed")
    for split in seeds["splits"]:
        table.add_column(split, justify="right")
    for seed, values in seeds["values"].items():
        mark = "  chosen" if seed == str(seeds["chosen"]) else ""
        table.add_row(f"{seed}{mark}", *(f"{_number(values[split][metric]):.4f}" for split in seeds["splits"]))
    for name, key in (("mean", "mean"), ("standard deviation", "sd")):
        table.add_row(name, *(f"{_number(seeds[split][metric][key]):.4f}" for split in seeds["splits"]))
    if "best_of" in seeds:
        luck = seeds["best_of"]
        table.caption = (
            f"The chosen seed leads the mean by {luck['lead_on_validation']:.4f} on validation and by "
            f"{luck['lead_on_test']:.4f} on test: {luck['optimism']:.4f} is the luck of choosing."
        )
    return table


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _show(value: Any) -> str:
    """A value as a user would write it."""
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
