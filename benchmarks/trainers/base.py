"""What the baselines share: the budget of a recipe for transformers' Trainer, and the choice of the best epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import transformers
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hftransfer import Recipe
from hftransfer.data.load import load_splits
from hftransfer.tasks.base import Task
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.tasks.registry import build_task
from hftransfer.training.defaults import resolve
from hftransfer.training.precision import choose_precision
from hftransfer.training.prepare import derive_schedule

MAX_LENGTH = 512
IGNORED = -100


class Baseline(ABC):
    """A task as transformers' classes train it.

    Args:
        recipe: The resolved recipe: columns, prompts and lengths are read from it.
        task: Our task, for names and labels.
        tokenizer: The checkpoint's tokenizer.
    """

    auto_class: ClassVar[str]
    peft_type: ClassVar[str]
    trainer_class: ClassVar[type[Trainer]] = Trainer
    arguments_class: ClassVar[type[TrainingArguments]] = TrainingArguments
    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, recipe: Recipe, task: Task, tokenizer: Any) -> None:
        self.recipe, self.task, self.tokenizer = recipe, task, tokenizer
        self.columns, self.settings = recipe.data, recipe.task
        self.max_length = recipe.data.max_length or min(MAX_LENGTH, tokenizer.model_max_length)

    def model_options(self) -> dict[str, Any]:
        """What `from_pretrained` is told."""
        return {}

    def prepare(self, model: Any) -> Any:
        """The model as it is trained."""
        return model

    @abstractmethod
    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """The encoded rows of a split."""

    def collator(self, model: Any) -> Any:
        """Makes batches of rows."""
        return DataCollatorWithPadding(self.tokenizer)

    @abstractmethod
    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """Our metrics of what the trained model predicts for a split."""


def train(kind: type[Baseline], recipe: Recipe, folder: str) -> tuple[str, dict[str, dict[str, float]]]:
    """Train with the recipe's budget: the metric that chose the epoch, and the scores of validation and test data."""
    recipe, origins = resolve(recipe)
    set_seed(recipe.seed)
    splits = load_splits(recipe.data, seed=recipe.seed, stratify=recipe.task.has_classes, task=recipe.task)
    assert splits.test is not None
    task = build_task(recipe.task, recipe.data, splits.train)
    metric = recipe.evaluation.metric or task.default_metric
    tokenizer = AutoTokenizer.from_pretrained(recipe.checkpoint)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    baseline = kind(recipe, task, tokenizer)
    encoded = {
        name: (data, baseline.rows(data, training=name == "train"))
        for name, data in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    recipe = derive_schedule(recipe, origins, len(encoded["train"][1]), num_processes=1)
    auto_class = getattr(transformers, kind.auto_class)
    model = auto_class.from_pretrained(recipe.checkpoint, dtype=torch.float32, **baseline.model_options())
    # Saved under the names of an old checkpoint, the best epoch's norms would not be found again by the Trainer.
    model._weight_conversions = []
    model = baseline.prepare(_adapted(model, recipe, kind.peft_type))
    trainer = _scored(kind.trainer_class)(
        model,
        _arguments(baseline, recipe, metric, folder),
        train_dataset=encoded["train"][1],
        eval_dataset=encoded["validation"][1],
        data_collator=baseline.collator(model),
        processing_class=tokenizer,
    )
    trainer.score = lambda: baseline.scores(trainer, *encoded["validation"])
    trainer.train()
    return metric, {name: baseline.scores(trainer, *encoded[name]) for name in ("validation", "test")}


def _scored(trainer_class: type[Trainer]) -> Any:
    """The class, evaluated by our metrics, which need the examples behind the rows (as in run_qa)."""

    class ScoredTrainer(trainer_class):  # type: ignore[misc, valid-type]
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            # Where batches are grouped by length, the Trainer groups those of a prediction, too, and gives it back in
            # their order.
            chosen, self.args.train_sampling_strategy = self.args.train_sampling_strategy, "random"
            try:
                return super().predict(*args, **kwargs)
            finally:
                self.args.train_sampling_strategy = chosen

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            scores = {f"eval_{name}": value for name, value in self.score().items()}
            self.log(scores)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
            return scores

    return ScoredTrainer


def _adapted(model: Any, recipe: Recipe, peft_type: str) -> Any:
    """The model, with PEFT's adapters if the recipe wants LoRA."""
    if recipe.strategy.type == "full_fine_tuning":
        return model
    if recipe.strategy.type != "lora":
        raise SystemExit(f"the Trainer has no {recipe.strategy.type}: name full_fine_tuning or lora")
    from peft import LoraConfig, get_peft_model

    lora = recipe.strategy
    config = LoraConfig(
        task_type=peft_type,
        r=lora.r,
        lora_alpha=lora.alpha or 2 * lora.r,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
    )
    return get_peft_model(model, config)


def _arguments(baseline: Baseline, recipe: Recipe, metric: str, folder: str) -> TrainingArguments:
    """Epochs, batch, rate, warm-up and decay of the recipe; one rate for all layers."""
    optim = recipe.optim
    return baseline.arguments_class(
        folder,
        per_device_train_batch_size=optim.per_device_train_batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=optim.gradient_accumulation_steps,
        learning_rate=optim.learning_rate,
        num_train_epochs=optim.num_train_epochs,
        warmup_steps=optim.warmup_ratio,
        weight_decay=optim.weight_decay,
        lr_scheduler_type=optim.lr_scheduler_type,
        label_smoothing_factor=getattr(recipe.task, "label_smoothing", 0.0),
        # A processor that only emulates bf16 takes far longer with it than without.
        bf16=choose_precision()[0] == "bf16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=greater_is_better(metric),
        train_sampling_strategy="group_by_length",
        seed=recipe.seed,
        report_to=[],
        disable_tqdm=True,
        **baseline.arguments,
    )
