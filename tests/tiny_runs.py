"""Whole runs on tiny random models, a task and a strategy each: they prove plumbing, never quality."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hftransfer import Recipe, Run, finetune
from tests.tiny_models import WORDS

TEXTS = [" ".join(WORDS[at : at + 4 + at % 5]) for at in range(0, 36, 3)]
EVERY = range(len(TEXTS))
TAGS = ("O", "B-a", "I-a", "B-b")
# Task -> the settings that it needs, the columns that it reads, and its rows.
TASKS: dict[str, tuple[dict[str, Any], dict[str, str], list[dict[str, Any]]]] = {
    "text_classification": ({}, {}, [{"text": TEXTS[at], "label": ("no", "perhaps", "yes")[at % 3]} for at in EVERY]),
    "token_classification": (
        {},
        {},
        [
            {"text": TEXTS[at].split(), "label": [TAGS[(at + place) % 4] for place in range(len(TEXTS[at].split()))]}
            for at in EVERY
        ],
    ),
    "question_answering": (
        {},
        {"text_pair": "context"},
        [
            {
                "text": f"what {WORDS[at]}",
                "context": TEXTS[at],
                "label": {"text": [TEXTS[at].split()[0]] * (at % 3 > 0), "answer_start": [0] * (at % 3 > 0)},
            }
            for at in EVERY
        ],
    ),
    "multiple_choice": (
        {},
        {"text_pair": "choices"},
        [{"text": TEXTS[at], "choices": ["good", "a bad dog", "it"], "label": at % 3} for at in EVERY],
    ),
    "seq2seq": (
        {"max_new_tokens": 6, "prompt": "film: "},
        {},
        [{"text": text, "label": " ".join(reversed(text.split()[:4]))} for text in TEXTS],
    ),
    "causal_lm": (
        {"max_new_tokens": 6},
        {"label": "completion"},
        [{"text": text, "completion": " ".join(text.split()[:4])} for text in TEXTS],
    ),
    "masked_lm": ({}, {}, [{"text": text} for text in TEXTS]),
}
FAMILIES = {"seq2seq": "t5", "causal_lm": "gpt2"}
"""The family that a task is run on, if it is not BERT."""
CLASSES = {"seq2seq": "AutoModelForSeq2SeqLM", "causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "feature_extraction": {},
    "top_layers": {"k": 1},
    "gradual_unfreezing": {"stages": 3},
    "full_fine_tuning": {},
    "bitfit": {},
    "lora": {"r": 2},
    "ia3": {},
    "lp_ft": {},
    "contrastive": {"pairs": 2},
}


def checkpoint_of(task: str, checkpoints: Path, language_models: Path, family: str | None = None) -> Path:
    """The tiny checkpoint that a task is trained on."""
    family = family or FAMILIES.get(task, "bert")
    return language_models / family / CLASSES[task] if task in CLASSES else checkpoints / family


def tiny_run(
    task: str,
    strategy: str | Mapping[str, Any],
    checkpoint: Path | str,
    output_dir: Path,
    *,
    rows: list[dict[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    steps: int = 3,
    **more: Any,
) -> Run:
    """A few steps of a task with a strategy, at a rate that moves every weight.

    Args:
        task: Its name.
        strategy: Its name, or its settings.
        checkpoint: What is trained.
        output_dir: The run's folder.
        rows: Training data in place of the task's own.
        settings: More settings of the task.
        columns: More columns.
        steps: How many steps.
        more: More settings of the recipe.
    """
    task_settings, task_columns, task_rows = TASKS[task]
    if isinstance(strategy, str):
        strategy = {"type": strategy, **STRATEGIES[strategy]}
    optim = {"max_steps": steps, "learning_rate": 0.02, "per_device_train_batch_size": 4, "warmup_ratio": 0.0}
    optim |= more.pop("optim", {})
    recipe = Recipe(
        checkpoint=str(checkpoint),
        task={"type": task, **task_settings, **(settings or {})},
        data={"max_length": 32, **task_columns, **(columns or {})},
        strategy=dict(strategy),
        optim=optim,
        output_dir=str(output_dir),
        **{"evaluation": {"keep": "last"}, **more},
    )
    rows = rows or task_rows
    with contextlib.redirect_stdout(io.StringIO()):
        return finetune(recipe, train=rows, validation=rows[:6], test=rows[6:])
