"""The parts of a page about the data, the worst errors, the cost and the recipe."""

from __future__ import annotations

from typing import Any

from hftransfer.report import charts
from hftransfer.report.page import RunView, Section, Table, duration, size
from hftransfer.report.svg import NONE, number


def lengths(run: RunView) -> Section | None:
    """How long the inputs are, and what max_length cuts off."""
    found = run.facts.get("lengths")
    if not found:
        return None
    totals = {name: max(sum(part["counts"]), 1) for name, part in found["splits"].items()}
    groups = [
        (name, [100 * value / totals[name] for value in part["counts"]]) for name, part in found["splits"].items()
    ]
    chart = charts.histogram(
        "Lengths of the inputs",
        "Share of each split's inputs by length.",
        found["edges"],
        found["width"],
        groups,
        ("tokens", "% of inputs"),
        found["limit"],
    )
    rows = []
    for name, part in found["splits"].items():
        cut = run.metrics["truncation"][name]
        share = cut["truncated_examples"] / max(cut["examples"], 1)
        lost = cut["truncated_tokens"] / max(cut["tokens"], 1)
        gold = f"{cut['truncated_gold_labels']:,} of {cut['gold_labels']:,}" if cut["gold_labels"] else NONE
        rows.append(
            [
                name,
                f"{cut['examples']:,}",
                number(part["mean"]),
                f"{part['longest']:,}",
                f"{cut['truncated_examples']:,} ({share:.1%})",
                f"{lost:.1%}",
                gold,
            ]
        )
    head = ["split", "examples", "mean tokens", "longest", "truncated examples", "tokens lost", "labels out of sight"]
    bins = [
        [
            f"{start:g}-{start + found['width'] - 1:g}",
            *(f"{part['counts'][place]:,}" for part in found["splits"].values()),
        ]
        for place, start in enumerate(found["edges"])
    ]
    text = f"Inputs are read up to {found['limit']:,} tokens; what is cut off is scored as missed."
    return Section(
        "lengths",
        "Lengths and truncation",
        text,
        [chart],
        [Table(head, rows)],
        [Table(["tokens", *found["splits"]], bins)],
    )


def examples(run: RunView) -> Section | None:
    """The worst errors, where the recipe allows to show texts."""
    found = run.facts.get("examples")
    if not found:
        return None
    rows = [[one["text"], one["right"], one["predicted"]] for one in found]
    text = f"The {len(rows)} worst errors among the {run.split} examples, the worst first (report_examples is on)."
    return Section("examples", "Worst errors", text, tables=[Table(["text", "right", "predicted"], rows, texts=3)])


def cost(run: RunView) -> Section:
    """Time, memory, and what caching saved."""
    about, machine = run.metrics.get("training", {}), run.facts.get("machine", {})
    rows = [
        ["training", duration(about.get("seconds"))],
        ["scoring in full precision", duration(about.get("scoring_seconds"))],
        ["intervals, baselines and calibration", duration(about.get("report_seconds"))],
        ["optimizer steps", f"{about.get('steps', 0):,}"],
        ["parameters that learn", _of(about.get("trained_parameters", 0), about.get("parameters", 0))],
        ["peak memory of the process", size(machine.get("peak_memory_bytes"))],
    ]
    if machine.get("peak_gpu_memory_bytes"):
        rows.append(["peak memory on the GPU", size(machine["peak_gpu_memory_bytes"])])
    if about.get("cache_served_rows"):
        served, again = about["cache_served_rows"], about.get("cache_recomputed_rows", 0)
        rows += [
            [
                "feature cache: rows encoded",
                f"{about['cache_encoded_rows']:,} in {duration(about['cache_encoding_seconds'])}",
            ],
            ["feature cache: rows found instead of computed", _of(served, served + again)],
            ["feature cache: time saved", duration(about["cache_saved_seconds"])],
        ]
    environment = run.metrics.get("environment", {})
    rows += [["precision", str(about.get("mixed_precision", NONE))]]
    rows += [[name, environment[name]] for name in ("device", "python", "torch", "transformers") if name in environment]
    return Section("cost", "Time and memory", tables=[Table(["", "value"], rows)])


def _of(part: float, whole: float) -> str:
    return f"{part:,.0f} of {whole:,.0f} ({part / whole:.1%})" if whole else f"{part:,.0f}"


def recipe(run: RunView) -> Section | None:
    """Every setting of the run."""
    if not run.recipe:
        return None

    def leaves(values: dict[str, Any], prefix: str = "") -> list[list[str]]:
        rows = []
        for name, value in values.items():
            rows += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [[f"{prefix}{name}", str(value)]]
        return rows

    return Section(
        "recipe",
        "Recipe",
        "recipe.yaml in the run's folder is a valid --config.",
        hidden=[Table(["setting", "value"], leaves(run.recipe), texts=2)],
    )
