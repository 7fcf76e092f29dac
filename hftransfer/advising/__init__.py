"""The advisor: facts, one pass over a sample, what every strategy would score and cost, and a choice.

from hftransfer.advice import advise
advice = advise(Recipe(checkpoint="DIR", data={"train": "train.csv"}))
print(advice.chosen.candidate.name)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hftransfer.advise import candidates as trying
from hftransfer.advise import facts as finding
from hftransfer.advise import rules
from hftransfer.advise.candidates import Candidate
from hftransfer.advise.cost import Cost
from hftransfer.advise.cross_validation import Reading, read_layers
from hftransfer.advise.encoding import encode_layers
from hftransfer.advise.facts import Facts
from hftransfer.advise.fitted import KNOWLEDGE
from hftransfer.advise.rules import Prediction, Situation
from hftransfer.advising.costs import costs_of, train_rows
from hftransfer.caching.boundary import CannotSplitError
from hftransfer.data.batching import epoch_order
from hftransfer.errors import CheckpointError, RecipeError, StrategyError
from hftransfer.one_seed import Prepared
from hftransfer.preflight.rows import rows_of_splits
from hftransfer.report.facts import class_counts
from hftransfer.strategies import make_strategy
from hftransfer.training import contrastive, head_fit
from hftransfer.training.defaults import evaluated_every
from hftransfer.training_settings import ENOUGH_STEPS, optimizer_steps

if TYPE_CHECKING:
    from hftransfer.recipe import Recipe

SAMPLED_ROWS = 2000
"""At most so many training rows are encoded."""
MEASURED_TASK = "text_classification"
PROBE_STRATEGY = {"type": "full_fine_tuning"}
"""What a recipe is prepared with before its strategy is known: the model as the checkpoint has it, nothing frozen."""


@dataclass(frozen=True)
class Option:
    """A candidate with what it would score and cost."""

    prediction: Prediction
    cost: Cost | None

    @property
    def candidate(self) -> Candidate:
        """What would be done."""
        return self.prediction.candidate


@dataclass(frozen=True)
class Advice:
    """What the advisor found.

    Attributes:
        facts: Of the data.
        reading: Of the frozen features; None where they are not measured.
        options: All candidates, cheap ones first.
        chosen: The recommendation; None where nothing can be predicted.
        reason: Why, in a sentence.
        tutorial: Type and row of the usual table.
        changes: What would lead to another recommendation, in sentences.
        notes: What the reader must know of the advice itself.
        encoded: Rows that were encoded, not found.
        seconds: What measuring took, without loading.
    """

    facts: Facts
    reading: Reading | None
    options: tuple[Option, ...]
    chosen: Option | None
    reason: str
    tutorial: tuple[str, str]
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    encoded: int = 0
    seconds: float = 0.0
    situation: Situation | None = field(default=None, compare=False)


def probing_recipe(recipe: Recipe) -> Recipe:
    """The recipe to prepare for measuring: the same data and checkpoint, nothing frozen, the model's own pooling."""
    values = recipe.model_dump(exclude_unset=True)
    task = {**recipe.task.model_dump(exclude_unset=True), "type": recipe.task.type}
    if recipe.task.type == MEASURED_TASK:
        task["pooling"] = "own"
    plain = {"strategy": PROBE_STRATEGY, "task": task, "resume": "never", "push_to_hub": False, "trackers": []}
    return type(recipe).model_validate({**values, **plain})


def gather_facts(prepared: Prepared) -> Facts:
    """What is known of the data without a forward pass."""
    recipe, task, features = prepared.recipe, prepared.task, prepared.data.features
    rows = rows_of_splits(prepared.data.splits, recipe, getattr(recipe.task, "problem", None))["train"]
    train = features["train"]
    return Facts(
        task=recipe.task.type,
        problem=getattr(recipe.task, "problem", None),
        train_examples=train.num_examples if prepared.chunks is None else prepared.chunks.num_rows,
        validation_examples=features["validation"].num_examples,
        classes=class_counts(task, {"train": train}).get("train", {}),
        lengths=finding.length_facts(train),
        max_length=recipe.data.max_length or 0,
        truncated=train.truncated_rows,
        duplicates=len(rows) - len(np.unique(rows.hashes_N, axis=0)),
        wording=finding.wording_of(rows.joined(finding.SAMPLED_TEXTS), prepared.loaded.tokenizer),
    )


def measure(prepared: Prepared) -> tuple[Reading, int]:
    """What the checkpoint's frozen features hold of the labels, from one pass over a sample of the training rows.

    Args:
        prepared: What `probing_recipe` came to.

    Returns:
        The reading, and how many rows were encoded for it.

    Raises:
        RecipeError: If the task is another than text classification.
        CheckpointError: If the model's states cannot be taken.
        DataError: If the rows are too few, or all alike.
    """
    if prepared.recipe.task.type != MEASURED_TASK:
        raise RecipeError(
            f"features are measured for {MEASURED_TASK} alone", where="task.type", fix="name a strategy for this task"
        )
    task: Any = prepared.task
    train, recipe = prepared.data.features["train"], prepared.recipe
    # One row of every example, were it read in several windows.
    first = np.unique(train.example_N, return_index=True)[1]
    rows = first[epoch_order(len(first), recipe.seed, 0)[:SAMPLED_ROWS]]
    model = prepared.loaded.model.to(prepared.accelerator.device)
    try:
        encoded = encode_layers(model, task, train, rows, prepared.accelerator, recipe.cache)
    except CannotSplitError as reason:
        raise CheckpointError(
            f"its states cannot be read ({reason})", where=recipe.checkpoint, fix="name a strategy"
        ) from None
    labels = np.asarray(train.labels)[rows]
    reading = read_layers(encoded.layers, labels, task.labels.problem, task.labels.num_outputs)
    return reading, encoded.computed


def situation_of(reading: Reading, train_examples: int, classes: int) -> Situation:
    """What the rules look at."""
    return Situation(train_examples, reading.chance, reading.score, reading.best_layer.probe, reading.slope, classes)


def classes_to_pair(prepared: Prepared) -> int:
    """The classes of which `contrastive` can form pairs; 0 where the task, the head or another setting rules it out."""
    task: Any = prepared.task
    # What was derived is that of the strategy that was prepared.
    every = evaluated_every("contrastive", prepared.recipe, prepared.known, train_rows(prepared))
    evaluation = prepared.recipe.evaluation.model_copy(update={"every": every})
    settings = {"strategy": make_strategy("contrastive").settings, "evaluation": evaluation}
    recipe = prepared.recipe.model_copy(update=settings)
    try:
        contrastive.check_support(recipe, task, prepared.accelerator)
        classes = int(task.labels.num_outputs)
        head_fit.check_support(prepared.loaded.model, classes)
    except StrategyError:
        return 0
    return classes


def advise(prepared: Prepared, *, timed: bool = True) -> Advice:
    """Measure, predict, and recommend.

    Args:
        prepared: What `probing_recipe` came to; its model is left in place, with nothing frozen.
        timed: Whether to measure what the candidates cost, too.

    Raises:
        UserError: If the data or the checkpoint cannot be measured.
    """
    started = time.perf_counter()
    facts = gather_facts(prepared)
    tutorial = rules.tutorial(facts.train_examples, foreign=facts.wording.is_foreign)
    blocks = prepared.loaded.anatomy.num_blocks
    classes = classes_to_pair(prepared)
    options = trying.candidates(blocks, facts.train_examples, classes)
    if facts.task != MEASURED_TASK:
        note = f"What a frozen {facts.task} model knows is not measured: here are facts and the tutorial's table."
        costs = costs_of(prepared, options) if timed else {}
        rated = tuple(Option(Prediction(one, None), costs.get(one.name)) for one in options)
        return Advice(facts, None, rated, None, "", tutorial, (), (note,), 0, time.perf_counter() - started)
    reading, encoded = measure(prepared)
    situation = situation_of(reading, facts.train_examples, classes)
    costs = costs_of(prepared, options) if timed else {}
    predictions = [rules.predict(situation, one, KNOWLEDGE) for one in options]
    picked = rules.choose(predictions)
    rated = tuple(Option(one, costs.get(one.candidate.name)) for one in predictions)
    chosen = next(one for one in rated if one.prediction is picked)

    def choose_at(other: Situation) -> Candidate:
        known = trying.candidates(blocks, other.train_examples, classes)
        return rules.choose([rules.predict(other, one, KNOWLEDGE) for one in known]).candidate

    changes = rules.change_of_mind(situation, reading.deviation, choose_at, chosen.candidate)
    return Advice(
        facts,
        reading,
        rated,
        chosen,
        reason_for(rated, chosen, reading),
        tutorial,
        tuple(changes),
        (*cautions(facts, reading, str(prepared.recipe.evaluation.metric)), *few_steps(prepared)),
        encoded,
        time.perf_counter() - started,
        situation,
    )


def few_steps(prepared: Prepared) -> list[str]:
    """That the user's schedule makes fewer steps than those of the trainings that the rules were fitted on."""
    optim, rows = prepared.recipe.optim, train_rows(prepared)
    batches = optim.gradient_accumulation_steps * prepared.accelerator.num_processes
    epochs = optim.num_train_epochs or 1
    steps = optim.max_steps or optimizer_steps(rows, epochs, optim.per_device_train_batch_size, batches)
    if steps >= ENOUGH_STEPS:
        return []
    return [
        f"The rules were fitted on trainings of at least {ENOUGH_STEPS} steps; the schedule that was set makes {steps}."
    ]


def reason_for(options: Sequence[Option], chosen: Option, reading: Reading) -> str:
    """Why this one, in a sentence."""
    scores = {one.candidate.name: one.prediction.score for one in options if one.prediction.score is not None}
    own = scores[chosen.candidate.name]
    best = max(scores, key=lambda name: scores[name])
    others = [name for name in scores if name != chosen.candidate.name]
    second = max(others, key=lambda name: scores[name], default=None)
    found = f"{reading.score_name} of {own:.3f} is predicted for it"
    if best != chosen.candidate.name:
        found += f"; {best} has {scores[best]:.3f}, no more than {rules.MARGIN:g} better, and more involved"
    elif second is not None:
        found += f", {own - scores[second]:.3f} more than for {second}"
    gain = own - reading.score
    return f"{found}; a linear head on the frozen features has {reading.score:.3f} ({gain:+.3f})"


def cautions(facts: Facts, reading: Reading, metric: str) -> list[str]:
    """What limits the advice.

    Args:
        facts: Of the data.
        reading: Of the frozen features.
        metric: What the recipe chooses by.
    """
    found = []
    if metric != reading.score_name:
        found.append(f"The recipe chooses by {metric}; what is predicted here is {reading.score_name}.")
    few, many = KNOWLEDGE.sizes
    if not few <= facts.train_examples <= many:
        found.append(
            f"The rules were fitted on {few:,} to {many:,} training examples; for {facts.train_examples:,} they are "
            "taken for the nearest of these."
        )
    if facts.problem != "single_label":
        found.append(f"The rules were fitted on single labels; for {facts.problem} they are carried over untested.")
    if facts.wording.is_foreign:
        found.append(
            f"The tokenizer makes {facts.wording.tokens_per_word:.2f} tokens of a word and does not know "
            f"{facts.wording.unknown:.1%} of them: another checkpoint may gain more than any strategy."
        )
    if reading.score - reading.chance < 2 * reading.deviation:
        found.append(
            "A linear head is no better than the most frequent answer, within its error: all predictions are weak."
        )
    if math.isfinite(reading.deviation) and reading.deviation > 0.05:
        found.append(f"The head's score has a standard error of {reading.deviation:.3f}: there are few rows.")
    return found
