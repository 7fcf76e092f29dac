"""Write the table of tasks, families and strategies in docs/matrix.md: python -m scripts.write_task_matrix.

A cell says which strategies train the task on the family. The contract tests run every one of them, and expect the
refusals that are listed here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import transformers

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy, analyse
from hftransfer.models.load import lacking_class
from hftransfer.strategies import make_strategy
from hftransfer.strategies.registry import STRATEGIES
from hftransfer.tasks.registry import TASKS
from tests.tiny_models import FAMILIES, tiny_model

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"
SHOWN = ("bert", "roberta", "albert", "deberta-v2", "modernbert", "t5", "bart", "gpt2", "llama")
SETTINGS: dict[str, dict[str, Any]] = {"top_layers": {"k": 1}, "gradual_unfreezing": {"stages": 3}, "lora": {"r": 2}}
"""Settings that fit models of three blocks, or one shared block."""


def no_model(task: str, family: str) -> str | None:
    """Why the family has no model for this task, as a run says it before any strategy is asked; None where it has."""
    auto_class = getattr(transformers, TASKS[task].class_for(family))
    return TASKS[task].unsuited(family) or lacking_class(auto_class, FAMILIES[family].config())


@cache
def anatomy_of(task: str, family: str) -> Anatomy:
    """What a family's model for a task is made of; all strategies are asked about the same one."""
    return analyse(tiny_model(getattr(transformers, TASKS[task].class_for(family)), family))


def refusal(task: str, family: str, strategy: str) -> str | None:
    """Why a strategy does not train this task on this family; None where it does."""
    if (reason := no_model(task, family)) is not None:
        return reason
    try:
        make_strategy(strategy, **SETTINGS.get(strategy, {})).stages(anatomy_of(task, family))
    except StrategyError as error:
        return str(error)
    return None


def matrix() -> dict[tuple[str, str], dict[str, str]]:
    """(Task, family) -> the refused strategies with the reasons."""
    found = {}
    for task in TASKS:
        for family in SHOWN:
            reasons = {strategy: refusal(task, family, strategy) for strategy in STRATEGIES}
            found[task, family] = {strategy: reason for strategy, reason in reasons.items() if reason is not None}
    return found


def page_text() -> str:
    """The page's content."""
    refused = matrix()
    lines = [
        "# Which strategies train which task on which model",
        "",
        "Written by `python -m scripts.write_task_matrix`. *all* are",
        f"{', '.join(f'`{name}`' for name in STRATEGIES)}.",
        "",
        "Every combination is run by the contract tests (`tests/contract`): two steps in each stage, in",
        "which the loss is finite and exactly what is meant to learn changes, saving, and loading with transformers",
        "alone (adapters with PEFT as well) with the same outputs. Where a cell says *refused*, transformers has no",
        "class for the task, or the family does not suit it; the reason is below the table.",
        "",
        f"| task | {' | '.join(SHOWN)} |",
        f"|---|{'---|' * len(SHOWN)}",
    ]
    for task in TASKS:
        cells = [_cell(refused[task, family]) for family in SHOWN]
        lines.append(f"| `{task}` | {' | '.join(cells)} |")
    lines += ["", "What is refused, with the reason that the run prints:", ""]
    reasons: dict[str, list[str]] = {}
    for (task, family), cell in refused.items():
        for reason in sorted(set(cell.values())):
            reasons.setdefault(reason, []).append(f"{task} on {family}")
    lines += [f"- {where[0]}: {reason}" for reason, where in reasons.items()]
    return "\n".join(lines) + "\n"


def _cell(refused: dict[str, str]) -> str:
    if len(refused) == len(STRATEGIES):
        return "refused"
    return f"all but {', '.join(f'`{name}`' for name in refused)}" if refused else "all"


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8")
