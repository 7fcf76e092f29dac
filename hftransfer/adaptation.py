"""Domain-adaptive pretraining, then the task, as one (Gururangan et al. 2020, arXiv:2004.10964).

First masked_lm (causal_lm for decoders) on a domain's texts with general text replayed, then the task from the
checkpoint that this leaves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftransfer import interruption
from hftransfer.data.batching import random_order
from hftransfer.data.texts import PLAIN_COLUMN, Texts, has_column, read_texts
from hftransfer.errors import DataError, RecipeError
from hftransfer.finetuning import finetune
from hftransfer.models.load import model_type
from hftransfer.recipe import Recipe
from hftransfer.run import Run, check_output_folder, check_push
from hftransfer.run_files import METRICS_FILE, MODEL_FOLDER, write_json
from hftransfer.verdicts import Verdict, VerdictTable

ADAPTATION, TASK, TEXTS, STATE = "adaptation", "task", "texts", "adaptation.json"
HELD_OUT_SHARE, HELD_OUT_LEAST, HELD_OUT_MOST, LEAST_TEXTS = 0.05, 20, 1000, 50
"""Of the texts so many are held out: this share, at least and at most so many; with fewer texts nothing is adapted."""
STREAM = 74
EPOCHS, RATE = 3, 1e-4
"""Defaults of the adaptation: passes and peak rate; its rows per step are the task's."""
SHARED_OPTIM = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")


@dataclass(frozen=True)
class AdaptationSettings:
    """How the checkpoint is adapted before the task.

    Attributes:
        texts: File with texts of the domain, as `data.texts.read_texts` reads it.
        column: Its text column; the task's own, else "text", when None.
        general: File with general text, which is replayed and whose loss shows what was forgotten.
        general_column: Its text column; found as the other when None.
        replay_share: Share of the rows of an epoch that are general.
        epochs: Passes over the texts.
        steps: Optimizer steps, in place of epochs.
        learning_rate: Peak rate.
    """

    texts: str
    column: str | None = None
    general: str | None = None
    general_column: str | None = None
    replay_share: float = 0.25
    epochs: int | None = None
    steps: int | None = None
    learning_rate: float = RATE


@dataclass(frozen=True)
class Adapted:
    """What `adapt` leaves behind: the run of the adaptation, that of the task, and the verdict on the first."""

    adaptation: Run
    task: Run
    verdict: Verdict


def adapt(recipe: Recipe, settings: AdaptationSettings, *, origins: Mapping[str, str] | None = None) -> Adapted:
    """Adapt the checkpoint to the texts of a domain, then train the task from it.

    Leaves OUTPUT/texts (what was trained on and held out), OUTPUT/adaptation and OUTPUT/task (run folders). With
    `resume="auto"` a finished adaptation on the same texts is used again, and an unfinished one goes on.

    Args:
        recipe: The task; its checkpoint is the one to adapt, its output_dir holds everything.
        settings: How to adapt.
        origins: Where the recipe's values come from.

    Returns:
        Both runs, and how the loss on held-out domain and general text changed.

    Raises:
        UserError: If recipe, texts and checkpoint do not fit together; nothing has been written then.
    """
    folder = Path(recipe.output_dir or "runs/adapted")
    language = _language_recipe(recipe, settings, folder)
    task = recipe.model_copy(update={"output_dir": str(folder / TASK)})
    if recipe.push_to_hub:
        task = task.model_copy(update={"hub_model_id": recipe.hub_model_id or folder.name})
    done = _finished(folder, language, settings)
    for one in (task,) if done else (language, task):
        check_output_folder(one)
    if not done:
        _check_texts_folder(folder, recipe, settings)
    check_push(task)
    if done:
        print(f"Adaptation: finished already, {folder / ADAPTATION}")
    else:
        before = _adapt(recipe, language, settings, folder)
        _mark_finished(folder, language, settings, before)
    adaptation = Run(folder / ADAPTATION)
    verdict = _verdict(folder, adaptation, recipe)
    adaptation.keep(verdict)
    print(*verdict.words, sep="\n")
    # The adapted folder is plain: no code of the checkpoint's is needed for it.
    following = task.model_copy(update={"checkpoint": str(adaptation.model_folder), "trust_remote_code": None})
    run = finetune(following, origins=origins)
    run.keep(verdict)
    return Adapted(adaptation, run, verdict)


def _language_recipe(recipe: Recipe, settings: AdaptationSettings, folder: Path) -> Recipe:
    """The recipe of the adaptation, on the files that `_write_texts` makes."""
    from hftransfer.training.language_model import language_task

    files = {name: str(folder / TEXTS / f"{name}.parquet") for name in ("domain", "domain_held_out", "general")}
    data: dict[str, Any] = {"train": files["domain"], "validation": files["domain_held_out"]}
    if settings.general is not None:
        data |= {"replay": files["general"], "replay_share": settings.replay_share}
    if recipe.data.max_length is not None:
        data["max_length"] = recipe.data.max_length
    optim: dict[str, Any] = {name: getattr(recipe.optim, name) for name in SHARED_OPTIM}
    optim["learning_rate"] = settings.learning_rate
    if settings.steps is not None and settings.epochs is not None:
        raise RecipeError("both epochs and steps are given", where="--adapt_steps", fix="give one of them")
    if settings.steps is not None:
        optim["max_steps"] = settings.steps
    optim["num_train_epochs"] = settings.epochs or (EPOCHS if settings.steps is None else None)
    task = language_task(model_type(recipe.checkpoint, recipe.trust_remote_code))
    return Recipe(
        checkpoint=recipe.checkpoint,
        data=data,
        task={"type": task},
        optim={name: value for name, value in optim.items() if value is not None},
        output_dir=str(folder / ADAPTATION),
        **{name: getattr(recipe, name) for name in ("overwrite", "resume", "checkpoint_every", "trust_remote_code")},
        seed=recipe.seed,
    )


def _adapt(recipe: Recipe, language: Recipe, settings: AdaptationSettings, folder: Path) -> dict[str, float]:
    """Train on the domain's texts; the losses on what is held out before that, by source."""
    column = settings.column or _column(settings.texts, recipe.data.text)
    sources = {"domain": read_texts(settings.texts, "--texts", column)}
    if settings.general is not None:
        column = settings.general_column or _column(settings.general, recipe.data.text)
        sources["general"] = read_texts(settings.general, "--general", column)
    parts = {name: hold_out(texts.distinct(), recipe.seed) for name, texts in sources.items()}
    # Before anything is written: whether the checkpoint has the head at all.
    with interruption.watched():
        before = _losses(recipe.checkpoint, recipe, {name: held for name, (_, held) in parts.items()})
    _write_texts(folder, parts)
    finetune(language)
    return before


def _losses(checkpoint: str, recipe: Recipe, held: Mapping[str, Texts]) -> dict[str, float]:
    """What a checkpoint's head makes of what is held out: nats per guessed token, as validation measures them."""
    from hftransfer.diagnose.language import LONGEST, to_device
    from hftransfer.training.language_model import load_language_model

    model = load_language_model(
        checkpoint, max_length=recipe.data.max_length or LONGEST, trust_remote_code=recipe.trust_remote_code
    )
    to_device(model.loaded.model)
    return {name: model.losses(model.encode(texts.texts)).mean for name, texts in held.items()}


def _column(path: str, own: str) -> str:
    return own if has_column(path, own) else PLAIN_COLUMN


def hold_out(texts: Texts, seed: int) -> tuple[Texts, Texts]:
    """Texts to train on, and texts to measure on: 5 %, at least 20 and at most 1,000 of them.

    Raises:
        DataError: If there are fewer than 50.
    """
    if len(texts) < LEAST_TEXTS:
        raise DataError(
            f"{len(texts)} different texts, too few to adapt to", where=texts.where, fix=f"give {LEAST_TEXTS} or more"
        )
    count = min(max(round(HELD_OUT_SHARE * len(texts)), HELD_OUT_LEAST), HELD_OUT_MOST)
    order = random_order(len(texts), seed, STREAM).tolist()
    return texts.take(sorted(order[count:])), texts.take(sorted(order[:count]))


def _check_texts_folder(folder: Path, recipe: Recipe, settings: AdaptationSettings) -> None:
    """Refuse to replace texts that are the user's.

    Raises:
        RecipeError: If the files that will be written are there, or the texts are read from among them.
    """
    target = (folder / TEXTS).resolve()
    for flag, path in (("--texts", settings.texts), ("--general", settings.general)):
        if path is not None and Path(path).resolve().is_relative_to(target):
            raise RecipeError("is in OUTPUT/texts, which is written", where=flag, fix="choose another --output_dir")
    if recipe.resume == "never" and not recipe.overwrite and any(target.glob("*.parquet")):
        raise RecipeError(
            "holds parquet files already", where=str(folder / TEXTS), fix="choose another --output_dir, or --overwrite"
        )


def _write_texts(folder: Path, parts: Mapping[str, tuple[Texts, Texts]]) -> None:
    from datasets import Dataset

    (folder / TEXTS).mkdir(parents=True, exist_ok=True)
    for name, (kept, held) in parts.items():
        for part, texts in ((name, kept), (f"{name}_held_out", held)):
            Dataset.from_dict({PLAIN_COLUMN: texts.texts}).to_parquet(str(folder / TEXTS / f"{part}.parquet"))


def _digest(language: Recipe, settings: AdaptationSettings) -> str:
    """What an adaptation is made of: its recipe, and the names, sizes and times of the files with texts."""
    values = language.model_dump(mode="json", exclude={"resume", "overwrite", "output_dir", "checkpoint_every"})
    files = {}
    for path in filter(None, (settings.texts, settings.general)):
        status = Path(path).stat() if Path(path).exists() else None
        files[path] = None if status is None else [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps([values, files], sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, language: Recipe, settings: AdaptationSettings) -> bool:
    """Whether this very adaptation has been done before and may be used again."""
    if language.resume == "never" or not (folder / STATE).is_file():
        return False
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    whole = (folder / ADAPTATION / METRICS_FILE).is_file()
    return whole and state.get("digest") == _digest(language, settings)


def _mark_finished(folder: Path, language: Recipe, settings: AdaptationSettings, before: Mapping[str, float]) -> None:
    """Measure the adapted model on what is held out, and note it with what it belongs to."""
    held = {name: read_texts(str(folder / TEXTS / f"{name}_held_out.parquet"), name) for name in before}
    after = _losses(str(folder / ADAPTATION / MODEL_FOLDER), language, held)
    write_json(
        folder / STATE, {"digest": _digest(language, settings), "loss_before": dict(before), "loss_after": after}
    )


def _verdict(folder: Path, adaptation: Run, recipe: Recipe) -> Verdict:
    """How the language-modelling loss changed, in words."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    before, after = state["loss_before"], state["loss_after"]
    examples = adaptation.metrics["training"]["train_examples"]
    change = {name: after[name] - before[name] for name in before}
    words = [
        f"The checkpoint was adapted to the domain by {adaptation.recipe.task.type} on {examples:,} rows: the loss on "
        f"held-out text of the domain went from {before['domain']:.3f} to {after['domain']:.3f} nats per token."
    ]
    if "general" in before:
        what = "forgotten" if change["general"] > 0 else "not forgotten"
        words.append(
            f"General text was {what}: its loss went from {before['general']:.3f} to {after['general']:.3f}, "
            f"with {adaptation.recipe.data.replay_share:.0%} of the rows replayed from it."
        )
    else:
        words.append("What was forgotten of general text is not known: no --general text was given.")
    rows = [[name, f"{before[name]:.4f}", f"{after[name]:.4f}", f"{change[name]:+.4f}"] for name in before]
    table = VerdictTable(
        caption="Language-modelling loss on held-out text, nats per guessed token (15 % masked at once in encoders).",
        head=["text", "before", "after", "change"],
        rows=rows,
    )
    return Verdict(
        key="adaptation",
        title="Domain-adaptive pretraining",
        words=words,
        warns=change["domain"] >= 0,
        tables=[table],
    )
