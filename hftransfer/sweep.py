"""Sweeps: many trainings of one recipe with some fields varied, on validation data alone; the best is tested once.

SWEEP/study.log     what has been tried (Optuna's journal); the same command goes on from there
SWEEP/trials/0007/  what each trial came to on validation data, without its model
SWEEP/best/         a whole run of the best recipe, tested
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftransfer import batched_seeds, interruption, one_seed
from hftransfer.batched_seeds import Head
from hftransfer.data.load import Splits
from hftransfer.errors import RecipeError, TrainingError, UserError
from hftransfer.finetuning import finetune, prepare_all
from hftransfer.recipe import Recipe
from hftransfer.report import outcomes
from hftransfer.report.statistics import selection_optimism
from hftransfer.run import Run, hub_name
from hftransfer.run_files import MODEL_FOLDER, write_json
from hftransfer.sweep_space import Varied, check_space, suggest, trial_recipe
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.training.heads import HeadSettings
from hftransfer.training.prepare import load_data

if TYPE_CHECKING:
    import optuna

JOURNAL, TRIALS, BEST, SUMMARY, TABLE = "study.log", "trials", "best", "sweep.json", "trials.csv"
STUDY = "sweep"
# Heads that learn from one ask; then the sampler looks at what they came to.
HEADS_AT_ONCE = 16
BATCHED_FIELDS = {"optim.learning_rate", "optim.weight_decay", "seed"}


@dataclass
class Sweep:
    """What the trials of a sweep share.

    Attributes:
        base: The recipe that is varied, with the score that chooses; its output_dir is the sweep's folder.
        space: What varies.
        splits: The data.
        prepared: The base recipe's model and features, without test data.
        study: What has been tried.
    """

    base: Recipe
    space: Sequence[Varied]
    splits: Splits
    prepared: one_seed.Prepared
    study: optuna.Study

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return Path(self.base.output_dir or "")

    @property
    def metric(self) -> str:
        """The score that chooses."""
        assert self.base.evaluation.metric is not None
        return self.base.evaluation.metric

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials with a score."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def trial_folder(self, number: int) -> Path:
        """Where a trial's outcomes are."""
        return self.folder / TRIALS / f"{number:04d}"


def sweep(base: Recipe, space: Sequence[Varied], trials: int, origins: Mapping[str, str] | None = None) -> Run:
    """Try values on validation data, then train and test the best recipe once.

    Args:
        base: The recipe; its output_dir is the sweep's folder.
        space: What varies.
        trials: How many trainings, those of earlier calls in this folder included.
        origins: Where the recipe's values come from.

    Returns:
        The run of the best recipe, in SWEEP/best.

    Raises:
        UserError: If the sweep cannot start, or no trial came to a score.
        Interrupted: If a signal asked it to end: the trials that have ended are kept.
    """
    with interruption.watched():
        current = start(base, space, origins)
        try:
            _try(current, trials)
            return _finish(current)
        except interruption.Interrupted:
            # What a trial says of going on with itself alone does not go for the sweep.
            over = f"{min(_used(current), trials)} of {trials} trials have ended and are kept"
            raise interruption.Interrupted(
                f"interrupted by {interruption.name()}; {over}; run the same command again to go on"
            ) from None


def _try(current: Sweep, trials: int) -> None:
    """Train until so many trials have ended."""
    while (left := trials - _used(current)) > 0:
        together = min(left, HEADS_AT_ONCE) if _batched(current) else 1
        asked = [_ask(current) for _ in range(together)]
        if together > 1 and _run_heads(current, asked):
            continue
        for trial, values in asked:
            _run_one(current, trial, values)


def start(base: Recipe, space: Sequence[Varied], origins: Mapping[str, str] | None = None) -> Sweep:
    """Load data and model, and open what has been tried before.

    Raises:
        UserError: If they do not fit together, or the folder holds another sweep.
    """
    if base.output_dir is None:
        raise RecipeError("a sweep needs a folder", where="output_dir", fix="name one with --output_dir")
    if base.data.streaming or base.seeds is not None:
        name = "data.streaming" if base.data.streaming else "seeds"
        raise RecipeError("does not go with a sweep", where=name, fix="leave it out; vary seed instead of seeds")
    if not space:
        raise RecipeError("nothing varies", where="sweep", fix="say --vary FIELD=a,b,c or --vary FIELD=low..high")
    check_space(space, base)
    folder = Path(base.output_dir)
    # What is added to the rows is added by every training, and must not be there before.
    plain: dict[str, Any] = {"replay": None, "counterfactuals": None}
    if any(one.name == "data.max_train_examples" for one in space):
        plain["max_train_examples"] = None
    splits = load_data(base.model_copy(update={"data": base.data.model_copy(update=plain)}), None, None, None)
    if base.push_to_hub:
        base = base.model_copy(update={"hub_model_id": hub_name(base)})
    own = base.model_copy(update={"output_dir": str(folder / BEST), "overwrite": True})
    prepared = prepare_all(own, train=splits.train, validation=splits.validation, origins=origins)
    metric = prepared.recipe.evaluation.metric
    base = base.model_copy(update={"evaluation": base.evaluation.model_copy(update={"metric": metric})})
    assert metric is not None
    study = open_study(folder, _identity(base, space), greater_is_better(metric), base.seed)
    return Sweep(base, space, splits, prepared, study)


def _identity(base: Recipe, space: Sequence[Varied]) -> str:
    """What a sweep that goes on must have in common with its beginning."""
    settings = base.model_dump(mode="json", exclude={"output_dir", "overwrite", "resume"})
    told = json.dumps([settings, [str(one) for one in space]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def open_study(folder: Path, identity: str, greater: bool, seed: int) -> optuna.Study:
    """The study in a folder, or a new one.

    Raises:
        RecipeError: If Optuna is missing, or the folder holds something else.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise RecipeError("sweeps need Optuna", where="sweep", fix="pip install 'hftransfer[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
        raise RecipeError(
            "the folder holds something that is no sweep", where=str(folder), fix="choose another --output_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(
        storage=storage, study_name=STUDY, direction="maximize" if greater else "minimize", load_if_exists=True
    )
    known = study.user_attrs.get("identity")
    if known not in (None, identity):
        raise RecipeError(
            "the sweep in this folder was begun with another recipe or other fields",
            where=str(folder),
            fix="say the same again, or choose another --output_dir",
        )
    study.set_user_attr("identity", identity)
    # A trial that was cut short is tried again; the sampler would repeat itself with the same seed.
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.set_user_attr("cut_short", study.user_attrs.get("cut_short", 0) + 1)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), multivariate=False)
    return study


def _used(current: Sweep) -> int:
    """How many trials have come to an end, with a score or with an error."""
    from optuna.trial import TrialState

    over = current.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return len(over) - int(current.study.user_attrs.get("cut_short", 0))


def _ask(current: Sweep) -> tuple[optuna.Trial, dict[str, Any]]:
    trial = current.study.ask()
    return trial, suggest(current.space, trial, current.base)


def _batched(current: Sweep) -> bool:
    """Whether all trials are heads on the same states."""
    return {one.name for one in current.space} <= BATCHED_FIELDS and batched_seeds.possible(current.prepared)


def _run_heads(current: Sweep, asked: Sequence[tuple[optuna.Trial, dict[str, Any]]]) -> bool:
    """Train the heads of several trials at once; False where they must be trained one by one."""
    prepared = current.prepared
    training = one_seed.build(prepared.of_seed(prepared.recipe.seed, str(current.folder / BEST), reload=False))
    optim = training.recipe.optim
    settings = [
        HeadSettings(
            values.get("seed", training.recipe.seed),
            values.get("optim.learning_rate", optim.learning_rate or 0.0),
            values.get("optim.weight_decay", optim.weight_decay or 0.0),
        )
        for _, values in asked
    ]
    heads = batched_seeds.train_heads(prepared, training, settings)
    if heads is None:
        return False
    for (trial, values), head in zip(asked, heads, strict=True):
        _keep_head(current, trial.number, head)
        _tell(current, trial, values, _score_of(head, current.metric, training.recipe.evaluation.keep == "best"))
    return True


def _score_of(head: Head, metric: str, best: bool) -> float:
    """The validation score of a head's final weights."""
    if best and head.progress.best_score is not None:
        return head.progress.best_score
    return float(next(one[f"validation_{metric}"] for one in reversed(head.records) if f"validation_{metric}" in one))


def _keep_head(current: Sweep, number: int, head: Head) -> None:
    """The validation outcomes of a head, for the optimism of the choice."""
    found = head.outcome
    if found is None:
        return
    kind, names, arrays = found
    folder = current.trial_folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    rows = current.prepared.data.row_hashes("validation")
    outcomes.save({"validation": outcomes.Outcomes(kind, names, rows, arrays)}, folder)


def _run_one(current: Sweep, trial: optuna.Trial, values: dict[str, Any]) -> None:
    """One training on validation data alone; an error of the recipe is told and counts as a failed trial."""
    folder = current.trial_folder(trial.number)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        recipe = trial_recipe(current.base, values)
        # What is tried is nothing to publish.
        plain: dict[str, Any] = {"output_dir": str(folder), "report_examples": False, "push_to_hub": False}
        own = recipe.model_copy(update={**plain, "data": recipe.data.model_copy(update={"test": None})})
        run = finetune(own, train=current.splits.train, validation=current.splits.validation)
    except UserError as error:
        current.study.tell(trial, state=_failed())
        current.prepared.say(f"Trial {trial.number} {values}: {error}")
        return
    shutil.rmtree(run.folder / MODEL_FOLDER, ignore_errors=True)
    value = run.metrics["validation"][current.metric]
    _tell(current, trial, values, float("nan") if value is None else value)


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _tell(current: Sweep, trial: optuna.Trial, values: Mapping[str, Any], score: float) -> None:
    if math.isfinite(score):
        current.study.tell(trial, score)
    else:
        current.study.tell(trial, state=_failed())
    told = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    current.prepared.say(f"Trial {trial.number}: validation {current.metric} {score:.4f}  ({told})")


def _finish(current: Sweep) -> Run:
    """Train and test the best recipe, and write what all trials came to."""
    finished = current.finished()
    if not finished:
        raise TrainingError("no trial came to a score", where=str(current.folder), fix="look at the messages above")
    _write_table(current.folder, current.study.get_trials(deepcopy=False))
    best = current.study.best_trial
    recipe = trial_recipe(current.base, best.params)
    recipe = recipe.model_copy(update={"output_dir": str(current.folder / BEST), "overwrite": True})
    current.prepared.say(
        f"Best of {len(finished)} trials: {best.number}, {best.params}; it is trained once more and tested"
    )
    run = finetune(recipe, train=current.splits.train, validation=current.splits.validation, test=current.splits.test)
    test = run.metrics.get("test", {}).get(current.metric)
    summary = {
        "metric": current.metric,
        "trials": len(finished),
        "best_trial": best.number,
        "best_values": best.params,
        "validation": best.value,
        "optimism": _optimism(current, finished),
        "test": test,
    }
    write_json(current.folder / SUMMARY, summary)
    lines = [f"Validation {current.metric} {best.value:.4f} is the best of {len(finished)}"]
    if summary["optimism"] is not None and math.isfinite(summary["optimism"]):
        lines.append(f"and flattered by about {summary['optimism']:.4f} by the choice")
    current.prepared.say("; ".join(lines) + (f"; test {current.metric} {test:.4f}" if test is not None else ""))
    return run


def _optimism(current: Sweep, finished: Sequence[optuna.trial.FrozenTrial]) -> float | None:
    """By how much the choice among the trials flatters; None where their outcomes were not kept."""
    folders = [current.trial_folder(trial.number) for trial in finished]
    if len(folders) < 2 or not all((folder / outcomes.FILE).is_file() for folder in folders):
        return None
    parts = [outcomes.load(folder)["validation"] for folder in folders]
    if current.metric not in parts[0].scores():
        return None
    return selection_optimism([part.statistic(current.metric) for part in parts], greater_is_better(current.metric))


def _write_table(folder: Path, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
    """trials.csv: number, state, validation score and values of every trial."""
    names = sorted({name for trial in trials for name in trial.params})
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", "state", "validation", *names])
        for trial in trials:
            value = trial.value if trial.value is not None else ""
            rows.writerow(
                [trial.number, trial.state.name.lower(), value, *(trial.params.get(name, "") for name in names)]
            )
