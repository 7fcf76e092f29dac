"""Recipe: frozen, validated data that fully describes one training. Nothing here imports torch.

Leaf names are Hugging Face's where they exist. A field left at None is derived when the run starts (from the
strategy's measured
defaults, the data or the checkpoint), printed with its origin and written to the run's `recipe.yaml`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from hftransfer.folded_settings import FOLDED, NOW_PART, folded_setting
from hftransfer.redaction import secret_setting
from hftransfer.setting_values import CHUNK_EXAMPLES, Seeds, Splits, Streaming, listed_columns, split_roles
from hftransfer.strategy_settings import Fraction, PlainStrategy, Rate, Section, StrategySettings
from hftransfer.training_settings import CacheSection, EvaluationSection, OptimSection


class DataSection(Section):
    """Where the examples come from and which columns matter."""

    train: str | None = Field(
        None, description="Training file (csv, tsv, json, jsonl, parquet) or saved datasets folder."
    )
    validation: str | None = Field(None, description="Validation file; without one a part of train is cut off.")
    test: str | None = Field(None, description="Test file, scored once at the end.")
    name: str | None = Field(
        None, description="Hub dataset id (with @revision) or saved DatasetDict folder, in place of files."
    )
    config: str | None = Field(None, description="Configuration of the Hub dataset.")
    splits: Splits = Field(
        "train,validation,test",
        description="Splits of `name` to train, validate and test on, joined by commas; all but the first may be left "
        "out.",
    )
    text: str = Field(
        "text",
        description="Column with the text. Token classification: lists of words, or raw text. Question answering: the "
        "question. Multiple choice: the premise, or several columns joined by commas. Generation: the input.",
    )
    text_pair: str | None = Field(
        None,
        description="Column with the second text of a pair. Question answering: the context. Multiple choice: lists of "
        "choices, or one column per choice, joined by commas.",
    )
    label: str = Field(
        "label",
        description="Column with the label (a string, an integer, a number or a list of labels). Token classification: "
        "a tag per word, or spans of raw text as {start, end, label}. Question answering: {text, answer_start}. "
        "Multiple choice: the number of the right choice, from 0. Generation: the output, or a list of right ones "
        "(causal_lm learns from texts alone unless the column is named).",
    )
    group: str | None = Field(None, description="Column whose equal values never land in two splits.")
    sensitive: str | None = Field(
        None,
        description="Columns with the groups that people belong to or that are spoken of, joined by commas, for "
        "task.balance and `hftransfer diagnose bias`. The model does not read them.",
    )
    counterfactuals: str | None = Field(
        None,
        description="Text classification: train on a copy, too, of every text that names a group, with another group "
        "in its place; 'builtin', or a file with terms (docs/bias.md).",
    )
    validation_fraction: Rate = Field(0.1, description="Part of train cut off when there is no validation data.")
    max_train_examples: PositiveInt | None = Field(None, description="Train on a random subset of this size.")
    replay: str | None = Field(
        None,
        description="File with further training rows in the same columns, mixed in once validation data are cut off: "
        "general text, or rows of an earlier task.",
    )
    replay_share: float = Field(
        0.2, gt=0.0, lt=1.0, description="Share of the training rows of an epoch that come from replay."
    )
    streaming: Streaming = Field(
        False,
        description="Read training data in chunks, with bounded memory, and shuffle within them; a number: so many "
        f"examples a chunk; true: {CHUNK_EXAMPLES:,}.",
    )
    max_length: PositiveInt | None = Field(None, description="Longest input in tokens; derived from data and model.")

    @property
    def chunk_examples(self) -> int:
        """Examples that streaming holds at once."""
        return CHUNK_EXAMPLES if isinstance(self.streaming, bool) else self.streaming

    @property
    def split_names(self) -> dict[str, str]:
        """The splits of `name` by what they are for: train, and validation and test as far as they are named."""
        return split_roles(self.splits)


ColumnKind = Literal["text", "texts", "label", "index", "tags", "spans", "answers"]
"""What a column may hold: a text, a list of texts (words, choices), a label of any kind, the number of a choice, a tag
per word, marked stretches of a text, answers with their place in a text."""


class TaskSection(Section):
    """Base of the tasks' settings. What a task's columns may hold is declared here, as data for those who read them."""

    text_kinds: ClassVar[tuple[ColumnKind, ...]] = ("text",)
    pair_kinds: ClassVar[tuple[ColumnKind, ...]] = ("text",)
    label_kinds: ClassVar[tuple[ColumnKind, ...]] = ("label",)
    """Empty for a task that learns from text alone."""

    @property
    def has_classes(self) -> bool:
        """Whether labels are classes, which every split should have in equal shares and train must know."""
        return False

    def input_columns(self, data: DataSection) -> dict[str, tuple[ColumnKind, ...]]:
        """The columns that the model reads, each with what it may hold."""
        pair = {} if data.text_pair is None else {data.text_pair: self.pair_kinds}
        return {data.text: self.text_kinds, **pair}

    def label_columns(self, data: DataSection) -> dict[str, tuple[ColumnKind, ...]]:
        """The column that the model learns from, with what it may hold; none for a task that learns from text alone."""
        return {data.label: self.label_kinds} if self.label_kinds else {}


class WindowedTask(TaskSection):
    """Base of the tasks that can read an input longer than max_length in several windows; its settings count once."""

    long_inputs: Literal["windows", "head", "head_tail"] | None = Field(
        None,
        description="What is read of inputs longer than max_length: all, in overlapping windows; the head; or, in text "
        "classification, head and tail. Absent: the head in text classification, else windows.",
    )
    stride: int | None = Field(
        None, ge=0, description="Tokens that neighbouring windows share; a quarter of max_length when absent."
    )


class SmoothedTask(TaskSection):
    """Base of the tasks whose target is one of several classes or tokens; its setting counts once."""

    label_smoothing: Fraction = Field(
        0.0, description="Share of the target spread over all classes (single label) or tokens."
    )


class TextClassification(WindowedTask, SmoothedTask):
    """Single label, pairs, multi-label and regression are one task with a `problem` setting."""

    type: Literal["text_classification"] = Field("text_classification", description="Name of the task.")
    problem: Literal["auto", "single_label", "multi_label", "regression"] = Field(
        "auto",
        description="What the label is; auto: lists are multi-label, fractions are regression, else single label.",
    )
    pooling: Literal["auto", "own", "cls", "mean", "last"] = Field(
        "auto",
        description="What the head reads; auto: mean where only the head learns and the model allows it, else own.",
    )
    balance: Literal["none", "classes", "groups", "sample_classes", "sample_groups"] = Field(
        "none",
        description="classes: weigh classes by inverse frequency. groups: weigh rows so that label and data.sensitive "
        "become independent. sample_classes, sample_groups: draw each class, or each label of each group, equally "
        "often.",
    )
    focal_gamma: float = Field(0.0, ge=0.0, description="Exponent of the focal loss; 0 is plain cross-entropy.")

    @property
    def has_classes(self) -> bool:
        """All problems but regression."""
        return self.problem != "regression"


class TokenClassification(WindowedTask):
    """A tag for every word, or entities as tags with prefixes (BIO, BIOES); words or raw text with marked spans."""

    text_kinds: ClassVar[tuple[ColumnKind, ...]] = ("texts", "text")
    label_kinds: ClassVar[tuple[ColumnKind, ...]] = ("tags", "spans")
    type: Literal["token_classification"] = Field("token_classification", description="Name of the task.")


class QuestionAnswering(WindowedTask):
    """The stretch of a context that answers a question, or that there is none."""

    label_kinds: ClassVar[tuple[ColumnKind, ...]] = ("answers",)
    type: Literal["question_answering"] = Field("question_answering", description="Name of the task.")


class MultipleChoice(TaskSection):
    """Which of 2 to 8 choices goes with a premise; every example may have another number of them."""

    pair_kinds: ClassVar[tuple[ColumnKind, ...]] = ("texts",)
    label_kinds: ClassVar[tuple[ColumnKind, ...]] = ("index",)
    type: Literal["multiple_choice"] = Field("multiple_choice", description="Name of the task.")

    def input_columns(self, data: DataSection) -> dict[str, tuple[ColumnKind, ...]]:
        """The premise, and the choices: one column with lists, or one column for each choice."""
        choices = listed_columns(data.text_pair)
        kinds = self.pair_kinds if len(choices) == 1 else self.text_kinds
        return {**dict.fromkeys(listed_columns(data.text), self.text_kinds), **dict.fromkeys(choices, kinds)}


class TextGeneration(SmoothedTask):
    """Text from text by an encoder-decoder (`seq2seq`), or by a decoder (`causal_lm`), which also learns from texts."""

    label_kinds: ClassVar[tuple[ColumnKind, ...]] = ("text", "texts")
    type: Literal["seq2seq", "causal_lm"] = Field("seq2seq", description="Name of the task.")
    prompt: str | None = Field(
        None,
        description="What is put before the text, such as 'summarize: ', or around it, with {text} (and {text_pair}) "
        "in their places; causal_lm: or 'chat' for the tokenizer's chat template.",
    )
    max_new_tokens: PositiveInt = Field(
        128, description="Longest output in tokens: generation ends there, and longer training targets are cut."
    )
    num_beams: PositiveInt = Field(1, description="Beams of the generation; 1 is greedy.")

    def label_columns(self, data: DataSection) -> dict[str, tuple[ColumnKind, ...]]:
        """The outputs; none for causal_lm unless their column is named, which then learns from texts alone."""
        named = "label" in data.model_fields_set and bool(data.label)
        return super().label_columns(data) if named or self.type == "seq2seq" else {}


class MaskedLM(TaskSection):
    """Hidden tokens from what is around them: goes on pretraining on the texts of a domain or a task."""

    label_kinds: ClassVar[tuple[ColumnKind, ...]] = ()
    type: Literal["masked_lm"] = Field("masked_lm", description="Name of the task.")
    whole_words: bool = Field(False, description="Mask whole words, not single tokens (T5 hides spans either way).")


GROUP_BALANCES = ("groups", "sample_groups")
"""Values of `task.balance` that need `data.sensitive`."""
NO_GROUPS = "no columns with groups"


TaskSettings = Annotated[
    TextClassification | TokenClassification | QuestionAnswering | MultipleChoice | TextGeneration | MaskedLM,
    Field(discriminator="type"),
]


MIN_CHOICES, MAX_CHOICES = 2, 8
"""How many choices an example of multiple choice may have."""

UNIONS = {"task": "text_classification", "strategy": "full_fine_tuning"}
"""Sections whose `type` decides which settings they have -> the type of one that says nothing."""

NO_SECRETS = "tokens come from HF_TOKEN or the Hub's login alone, since a run writes its recipe down"


class Recipe(Section):
    """One training, whole: checkpoint, data, task, strategy, optimisation, evaluation, output and seed."""

    checkpoint: str = Field(description="Hub id (with @revision) or local folder of the pretrained model.")
    data: DataSection = Field(default_factory=DataSection, description="The examples.")
    task: TaskSettings = Field(default_factory=TextClassification, description="What is predicted.")
    strategy: StrategySettings = Field(default_factory=PlainStrategy, description="Which weights learn, and when.")
    optim: OptimSection = Field(default_factory=OptimSection, description="Optimisation.")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="Evaluation.")
    cache: CacheSection = Field(default_factory=CacheSection, description="The feature cache.")
    output_dir: str | None = Field(None, description="Folder for the run; derived: runs/TASK-STRATEGY-TIME.")
    overwrite: bool = Field(False, description="Replace an earlier run in output_dir.")
    resume: Literal["auto", "never", "force"] = Field(
        "never", description="auto: continue from the newest valid checkpoint; force: even if recipe or data changed."
    )
    preflight: Literal["warn", "strict", "off"] = Field(
        "warn",
        description="Checks before the training: errors stop it; strict: warnings, too; off: nothing is checked.",
    )
    checkpoint_every: PositiveInt | None = Field(None, description="Save the training state every N optimizer steps.")
    keep_checkpoints: PositiveInt = Field(1, description="How many training states to keep.")
    trust_remote_code: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+@[0-9a-f]{40}$",
        description="Run the code that comes with the checkpoint, after reading it: ORG/NAME@COMMIT (40 hex digits), "
        "as in `checkpoint`.",
    )
    push_to_hub: bool = Field(False, description="Publish the model at the end, once it has been verified.")
    hub_model_id: str | None = Field(
        None, description="Repository to push to, such as me/my-model; the name of output_dir when absent."
    )
    hub_private_repo: bool = Field(True, description="Whether the pushed repository is private.")
    trackers: list[str] = Field(
        default_factory=list, description="Trackers for Accelerate's log_with; codecarbon measures emissions."
    )
    seed: int = Field(13, ge=0, description="Seed of splits, the head, the order of examples and dropout.")
    seeds: Seeds | None = Field(
        None, description="Train with several seeds on one split: how many, counted on from seed, or a list (1,2,3)."
    )
    report_examples: bool = Field(
        False, description="Show the worst errors, with their texts, in report.html and the model card."
    )

    @property
    def beside(self) -> list[str]:
        """Columns that are neither read nor learnt from: those with groups, unless they are input or label, too."""
        used = {*self.task.input_columns(self.data), *self.task.label_columns(self.data)}
        return [name for name in listed_columns(self.data.sensitive) if name not in used]

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """The seeds that a head, the order of examples and dropout are drawn from; `seed` alone decides the splits."""
        if isinstance(self.seeds, int):
            return tuple(range(self.seed, self.seed + self.seeds))
        return tuple(self.seeds or (self.seed,))

    @model_validator(mode="before")
    @classmethod
    def _union_by_name(cls, values: Any) -> Any:
        """Accept `strategy="lora"` and a mapping without `type` as what they evidently mean; likewise `task`."""
        secret = secret_setting(values)
        if secret is not None:
            raise ValueError(f"{secret} holds a token or a password; {NO_SECRETS}")
        folded = folded_setting(values)
        if folded is not None:
            raise ValueError(f"{folded} {NOW_PART}; {FOLDED[folded]}")
        if isinstance(values, dict):
            for name, usual in UNIONS.items():
                value = values.get(name)
                if isinstance(value, str):
                    values = {**values, name: {"type": value}}
                elif isinstance(value, dict) and "type" not in value:
                    values = {**values, name: {"type": usual, **value}}
        return values
