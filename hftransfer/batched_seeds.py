"""Several seeds of feature extraction in one pass: their heads are trained together on the states that all share.

Shape legend: S seeds, N rows, M validation rows, D width of a state, C outputs.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hftransfer import one_seed, results
from hftransfer.caching.boundary import Tap, capture, find_tap
from hftransfer.caching.states import STATES, CachedInputs, StageInputs, model_inputs
from hftransfer.data.batching import pass_tokens, token_budget_batches
from hftransfer.models.weights import initialise
from hftransfer.one_seed import Prepared
from hftransfer.run import Run, create_run
from hftransfer.run_files import LOG_FILE, SEEDS_FOLDER, plain_numbers
from hftransfer.tasks.base import Features, Outcome, Task
from hftransfer.training import summary
from hftransfer.training.averaging import is_better, is_kept
from hftransfer.training.fast_training import fast_training
from hftransfer.training.heads import Chain, Heads, HeadSettings, NoChainError, find_chain
from hftransfer.training.loop import LOG_EVERY, Training
from hftransfer.training.schedule import rate_factor
from hftransfer.training.state import Progress
from hftransfer.training_settings import evaluations

CHECKED_ROWS = 4


@dataclass
class Head:
    """One head: what the log of its own training would hold, and its weights.

    Attributes:
        settings: How it is trained.
        records: The lines of its log.
        progress: How far it has come, and its best evaluation.
        weights: Its final weights.
        outcome: What its final weights come to on the validation examples.
    """

    settings: HeadSettings
    records: list[dict[str, Any]] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    weights: dict[str, Tensor] = field(default_factory=dict)
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Bench:
    """What heads are trained on.

    Attributes:
        training: Model, task, stage and cache of the first seed.
        chain: The head.
        train_ND: States of the training rows.
        validation_MD: States of the validation rows.
    """

    training: Training
    chain: Chain
    train_ND: Tensor
    validation_MD: Tensor


def possible(prepared: Prepared) -> bool:
    """Whether heads alone learn, in a way that needs nothing of the loop but its steps."""
    recipe = prepared.recipe
    return (
        recipe.strategy.type == "feature_extraction"
        and recipe.task.type == "text_classification"
        and not recipe.cache.is_off
        and recipe.resume == "never"
        and recipe.checkpoint_every is None
        and recipe.evaluation.early_stopping_patience is None
        and recipe.evaluation.keep in ("best", "last")
        and not recipe.trackers
        and prepared.chunks is None
        and prepared.accelerator.num_processes == 1
    )


def train(prepared: Prepared, training: Training, run: Run) -> int | None:
    """Train all seeds at once and write their folders and the chosen model.

    Args:
        prepared: Recipe, data, and the model with the first seed's head.
        training: What `one_seed.build` made of the first seed.
        run: The run; its model is the one that validation chooses.

    Returns:
        The chosen seed; None where the seeds must be trained one by one, and nothing has been written then.
    """
    if not possible(prepared):
        return None
    one_seed.announce(prepared, training)
    optim = training.recipe.optim
    settings = [
        HeadSettings(seed, optim.learning_rate or 0.0, optim.weight_decay or 0.0)
        for seed in prepared.recipe.training_seeds
    ]
    heads = train_heads(prepared, training, settings)
    if heads is None:
        return None
    states = {split: exact_states(training, prepared.data.features[split]) for split in prepared.data.evaluated}
    return _finish(prepared, training, heads, states, run)


def train_heads(prepared: Prepared, training: Training, settings: Sequence[HeadSettings]) -> list[Head] | None:
    """Train heads with these settings on the cached states; None where there are none or the head is no chain."""
    model = training.model.to(prepared.accelerator.device)
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(fast_training(model, prepared.accelerator.device.type))
        inputs = stack.enter_context(
            training.cache.stage(model, [prepared.loaded.anatomy.head_depth], passes=float(training.total_steps))
        )
        prepared.say(inputs.note)
        try:
            bench = _bench(training, inputs, model)
        except NoChainError as reason:
            prepared.say(f"Seeds one by one: {reason}")
            return None
        first = inputs.facts()
        encoding = inputs.encoding_seconds
    # The others would have found what the first one has encoded.
    found = {"cache_encoded_rows": 0, "cache_encoding_seconds": 0.0}
    later = {**first, **found, "cache_saved_seconds": round(first["cache_saved_seconds"] + encoding, 3)}
    prepared.say(f"{len(settings)} heads are trained at once, in fp32")
    heads = _loop(prepared, bench, settings)
    # The encoding belongs to the first, the loop to all alike.
    share = (time.perf_counter() - started - encoding) / len(heads)
    for number, head in enumerate(heads):
        head.progress.seconds = share + (encoding if number == 0 else 0.0)
        head.progress.cache_facts = dict(later if number else first)
    of_all = [head.progress.cache_facts for head in heads]
    prepared.say(summary.cache_line({name: sum(facts[name] for facts in of_all) for name in first}))
    return heads


def _bench(training: Training, inputs: StageInputs, model: Any) -> Bench:
    """The states of all rows, and the head as a chain."""
    parts = [inputs.splits[name] for name in ("train", "validation")]
    if not all(isinstance(part, CachedInputs) and part.replay.tap.head_input != "tokens" for part in parts):
        raise NoChainError("there is no single cached vector per text")
    cached = [part for part in parts if isinstance(part, CachedInputs)]
    device = next(model.parameters()).device
    train_ND, validation_MD = (
        part.states.gather(np.arange(len(part.features)), part.compute)[:, 0].to(device) for part in cached
    )
    # As often as the training of one seed would have read them.
    steps, per_epoch = training.total_steps, training.batches.per_epoch
    scorings = evaluations(steps, training.recipe.evaluation.every or per_epoch)
    for part, passes in zip(cached, (steps / per_epoch, scorings), strict=True):
        part.served += round(passes * len(part.features))
    rows = np.arange(min(CHECKED_ROWS, len(cached[1].features)))
    batch = {name: tensor.to(device) for name, tensor in cached[1].collate(rows).items()}
    chain = find_chain(model, lambda: cached[1].run(model, batch), batch[STATES][:, 0])
    return Bench(training, chain, train_ND, validation_MD)


def _starts(prepared: Prepared, chain: Chain, seeds: Sequence[int]) -> list[dict[str, Tensor]]:
    """The weights with which a training of each seed would start."""
    loaded, found = prepared.loaded, []
    for seed in seeds:
        initialise(loaded.model, loaded.fresh_parameters, seed)
        prepared.task.initialise_head(loaded.model, loaded.fresh_parameters, prepared.data.features["train"])
        found.append({name: parameter.detach().clone() for name, parameter in chain.named_parameters()})
    return found


def _loop(prepared: Prepared, bench: Bench, settings: Sequence[HeadSettings]) -> list[Head]:
    """All steps, with an evaluation where a training alone would have one."""
    training, recipe = bench.training, bench.training.recipe
    starts = _starts(prepared, bench.chain, [one.seed for one in settings])
    trained = Heads(bench.chain, starts, settings, recipe, prepared.task, bench.train_ND, training.train)
    heads = [Head(one) for one in settings]
    every, losses = recipe.evaluation.every or trained.per_epoch, []
    for step in tqdm(range(1, trained.total_steps + 1), unit="step", dynamic_ncols=True, mininterval=2.0):
        losses.append(trained.step(step - 1))
        last = step == trained.total_steps
        if step % LOG_EVERY == 0 or last:
            optim = recipe.optim
            factor = rate_factor(optim.lr_scheduler_type, step - 1, trained.total_steps, optim.warmup_ratio or 0.0)
            for head, loss in zip(heads, np.mean(losses, 0), strict=True):
                one = {"step": step, "epoch": round(step / trained.per_epoch, 4), "stage": "head", "loss": float(loss)}
                head.records.append({**one, "learning_rate": head.settings.learning_rate * factor})
            losses = []
        if step % every == 0 or last:
            _evaluate(prepared, bench, trained, heads, step)
    return heads


def _evaluate(prepared: Prepared, bench: Bench, trained: Heads, heads: Sequence[Head], step: int) -> None:
    """Score every head on validation data, and keep its weights if they are its best."""
    metric, task = bench.training.metric, copy.copy(prepared.task)
    thresholds = bench.training.recipe.evaluation.tunes_thresholds
    keeps_best = bench.training.recipe.evaluation.keep == "best"
    logits_SMC, copies = trained.logits(bench.validation_MD).cpu().numpy(), trained.copies()
    for head, logits_MC, weights in zip(heads, logits_SMC, copies, strict=True):
        task.calibrate(logits_MC, bench.training.validation, thresholds=thresholds)
        scores, progress = task.score(logits_MC, bench.training.validation), head.progress
        progress.step = step
        if is_kept(scores[metric], progress.best_score, metric):
            progress.best_score, progress.best_step, progress.best_scores = scores[metric], step, scores
            if keeps_best:
                head.weights, head.outcome = weights, task.outcomes(logits_MC, bench.training.validation)
        if step == trained.total_steps and not keeps_best:
            head.weights, head.outcome = weights, task.outcomes(logits_MC, bench.training.validation)
        named = {f"validation_{name}": value for name, value in scores.items()}
        head.records.append({"step": step, "epoch": round(step / trained.per_epoch, 4), **named})


@torch.no_grad()
def exact_states(training: Training, features: Features) -> Tensor:
    """What the head reads of every row, (N, D), in full precision, as scoring wants it."""
    model: Any = training.model
    tap: Tap = find_tap(model, training.anatomy.head_depth)
    device = next(model.parameters()).device
    model.eval()
    pieces, order = [], []
    for rows in token_budget_batches(features.lengths_N, pass_tokens(device.type), 256):
        batch = {
            name: tensor.to(device) for name, tensor in model_inputs(training.task.collate(features, rows)).items()
        }
        pieces.append(capture(model, [tap], batch)[tap.boundary][:, 0])
        order.append(rows)
    states_ND = torch.empty(len(features), pieces[0].shape[-1], device=device)
    states_ND[torch.from_numpy(np.concatenate(order)).to(device)] = torch.cat(pieces)
    return states_ND


def load_head(chain: Chain, weights: Mapping[str, Tensor]) -> None:
    """Put a head's weights into the model that the chain belongs to."""
    with torch.no_grad():
        for name, parameter in chain.named_parameters():
            parameter.copy_(weights[name])


def chain_of(training: Training, features: Features, states_ND: Tensor) -> Chain:
    """The head of the model as a chain on exact states."""
    rows = np.arange(min(CHECKED_ROWS, len(features)))
    batch = model_inputs(training.task.collate(features, rows))
    model: Any = training.model
    inputs = {name: tensor.to(states_ND.device) for name, tensor in batch.items()}
    return find_chain(model, lambda: model(**inputs), states_ND[: len(rows)])


def _finish(
    prepared: Prepared, training: Training, heads: Sequence[Head], states: Mapping[str, Tensor], run: Run
) -> int:
    """Score every head, write its folder, and save the model with the best one."""
    chain = chain_of(training, prepared.data.features["validation"], states["validation"])
    best: tuple[float, int, dict[str, Tensor], Task] | None = None

    def predict(split: str) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            found: np.ndarray[Any, Any] = chain.eval()(states[split]).float().cpu().numpy()
        return found

    for head in heads:
        load_head(chain, head.weights)
        seed = head.settings.seed
        folder = run.folder / SEEDS_FOLDER / str(seed)
        own = prepared.recipe.model_copy(update={"seeds": [seed], "output_dir": str(folder)})
        task = training.task = copy.copy(prepared.task)
        training.progress = head.progress
        found = results.score(own, task, prepared.data, training.model, predict)
        part = create_run(own)
        _write_log(part.folder, head.records)
        results.write(part, training, own, prepared.data, found)
        value = found.scores["validation"][training.metric]
        if best is None or is_better(value, best[0], training.metric):
            weights = {name: parameter.detach().clone() for name, parameter in chain.named_parameters()}
            best = (value, seed, weights, task)
    assert best is not None
    load_head(chain, best[2])
    results.save(run, prepared.recipe, best[3], prepared.loaded, prepared.strategy.finish(training.model))
    return best[1]


def _write_log(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(plain_numbers(dict(record))) + "\n" for record in records]
    (folder / LOG_FILE).write_text("".join(lines), encoding="utf-8")
