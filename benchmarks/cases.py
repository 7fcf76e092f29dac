"""What is compared with what, and the targets: the comparisons as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

BATCH = 32
"""Examples per optimizer step, for every contestant."""

OPTIM = {"batch": BATCH, "warmup": 0.1, "weight_decay": 0.01}
FP32 = {**OPTIM, "precision": "fp32", "padding": "dynamic"}
BEST = {**FP32, "eval_batch": 128}
# run_glue's defaults; the accumulation makes the optimizer step see as many examples as everybody's.
GLUE = {"batch": 8, "accumulation": BATCH // 8, "precision": "fp32", "padding": "max_length"}
# The setting that is fast on every processor comes first: trials that take much longer are cut short.
TUNED = (
    {"precision": "fp32", "sampling": "group_by_length"},
    {"precision": "fp32", "sampling": "group_by_length", "batch": BATCH // 2, "accumulation": 2},
    {"precision": "bf16", "sampling": "group_by_length"},
    {"precision": "bf16", "sampling": "random"},
    {"precision": "bf16", "sampling": "group_by_length", "batch": BATCH // 2, "accumulation": 2},
)
# Frozen weights may be kept in bf16 without harm to what learns.
TUNED_FROZEN = (*TUNED, {"precision": "bf16", "sampling": "group_by_length", "frozen_dtype": "bf16"})
OURS = "hftransfer"


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    Attributes:
        name: What the tables call it.
        module: The module to run; its process gets `settings`.
        settings: Passed on.
        needs: A package that must be installed for it.
        candidates: Settings of which a short trial on this machine chooses the fastest.
        checkpoint: The checkpoint of the command line, or random weights in the size of BERT-base.
        examples: Training examples as a multiple of those of the command line.
    """

    name: str
    module: str
    settings: Mapping[str, Any]
    needs: str = ""
    candidates: tuple[Mapping[str, Any], ...] = ()
    checkpoint: Literal["given", "bert-base"] = "given"
    examples: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """A ratio: `numerator` over `denominator`.

    Attributes:
        numerator: A contestant: the peer, where the ratio says how many times faster we are.
        denominator: Another.
        target: What the ratio should reach; None where it is for information.
        at_most: Whether the target is a limit from above.
        quantity: seconds, or rate: operations per second.
        margin: How much lower the denominator's accuracy may be, as a share; None where the other's interval says.
    """

    numerator: str
    denominator: str = OURS
    target: float | None = None
    at_most: bool = False
    quantity: Literal["seconds", "rate"] = "seconds"
    margin: float | None = None


@dataclass(frozen=True)
class Case:
    """A measurement: contestants that take turns, and what is read off them.

    Attributes:
        name: For the command line.
        title: For the report.
        timed: What the clock covers, where it is not what it covers everywhere.
        contestants: In the order of the first round.
        comparisons: The ratios.
        series: The contestants are sizes of one thing: fit lines through their times and disk use.
        warm: Each contestant keeps its folders and caches, and a first round does not count.
        gpu: It is for a machine with a GPU; the others are for the CPU.
        notes: What a reader must know.
    """

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    comparisons: tuple[Comparison, ...] = ()
    timed: str = ""
    series: bool = False
    warm: bool = False
    gpu: bool = False
    notes: tuple[str, ...] = ()


def ours(strategy: Mapping[str, Any], epochs: int, name: str = OURS, **more: Any) -> Contestant:
    """hftransfer with a strategy's default rates."""
    recipe = {"strategy": dict(strategy), "optim": {"num_train_epochs": epochs, "per_device_train_batch_size": BATCH}}
    checkpoint = more.pop("checkpoint", "given")
    settings = {"recipe": {**recipe, **more.pop("recipe", {})}, **more}
    return Contestant(name, "contestants.ours", settings, checkpoint=checkpoint)


def trainer(name: str, settings: Mapping[str, Any], **more: Any) -> Contestant:
    """transformers' Trainer."""
    return Contestant(name, "contestants.trainer", settings, **more)


def peft(name: str, settings: Mapping[str, Any], epochs: int, **more: Any) -> Contestant:
    """PEFT in transformers' Trainer."""
    lora = {"r": 8, "alpha": 16, "dropout": 0.05, "targets": ["query", "value"]}
    given = {**settings, **lora, "epochs": epochs, "learning_rate": 1e-3, **more.pop("lora", {})}
    return Contestant(name, "contestants.peft_trainer", given, **more)


GLUE_NAME = "Trainer, run_glue's defaults"
FP32_NAME = f"Trainer, fp32, batch {BATCH}"
BEST_NAME = "Trainer at its best"
RATES = "Learning rates, warm-up and decay of the peers are those of hftransfer's defaults: they cost no time."

_HEAD = {"epochs": 10, "learning_rate": 1e-3, "frozen": "body"}
FEATURES = Case(
    "features",
    "Feature extraction, 10 epochs",
    (
        ours({"type": "feature_extraction"}, 10),
        trainer(GLUE_NAME, {**GLUE, **_HEAD}),
        trainer(BEST_NAME, {**BEST, **_HEAD}, candidates=TUNED_FROZEN),
    ),
    (Comparison(GLUE_NAME, target=50), Comparison(BEST_NAME)),
    notes=(
        "The Trainer's body is frozen by `requires_grad_(False)`; pooler and classifier learn on both sides.",
        "run_glue's rate of 5e-5 would leave such a head untrained, so it gets 1e-3 like ours.",
        "hftransfer's head reads the mean of the tokens (its default here), the Trainer's the first token.",
        f"run_glue's batches of 8 are accumulated to {BATCH} examples per step.",
    ),
)

_PROBE = {"mode": "probe", "recipe": {"strategy": {"type": "feature_extraction"}}}
_ENCODER = {"module": "contestants.sentence_transformers", "needs": "sentence_transformers"}
ENCODING = Case(
    "encoding",
    "Encoding and logistic regression",
    (
        Contestant(OURS, "contestants.ours", _PROBE),
        Contestant("sentence-transformers + scikit-learn, defaults", settings={}, **_ENCODER),
        Contestant(
            "sentence-transformers + scikit-learn, equal dtype",
            settings={"dtype": "native"},
            candidates=({"batch": None}, {"batch": 128}),
            **_ENCODER,
        ),
        Contestant("SetFit's head", "contestants.setfit", {}, needs="setfit"),
    ),
    (
        Comparison("sentence-transformers + scikit-learn, defaults", target=4, margin=0.005),
        Comparison("sentence-transformers + scikit-learn, equal dtype", target=1.5, margin=0.005),
        Comparison("SetFit's head"),
    ),
    timed="Tokenization, encoding of the training texts and the fit of the regression.",
    notes=("Equal dtype: bf16 where the processor or a GPU computes in it (hftransfer's default there), else fp32.",),
)

_GRID = {"learning_rates": [1e-3, 3e-3, 1e-2, 3e-2], "weight_decays": [0.0, 0.01, 0.1, 1.0], "seeds": [1, 2, 3, 4]}
HEADS = Case(
    "heads",
    "64 heads on cached features, 10 epochs",
    tuple(
        Contestant(name, "contestants.ours", {**_PROBE, "mode": "heads", "heads": _GRID, "clock": clock})
        for name, clock in (("encoding pass", "encoding"), ("64 heads", "heads"))
    ),
    (Comparison("64 heads", "encoding pass", 0.15, at_most=True),),
    timed="The encoding pass of the feature cache, storing included; `probe`, scoring on validation included.",
    notes=("Four learning rates, weight decays and seeds each; the accuracy is that of the best by validation.",),
)

SEEDS = Case(
    "seeds",
    "Five seeds of feature extraction against one",
    (
        ours({"type": "feature_extraction"}, 10, "one seed", whole=True),
        ours({"type": "feature_extraction"}, 10, "five seeds", whole=True, seeds=5),
    ),
    (Comparison("five seeds", "one seed", 1.2, at_most=True),),
    timed="The whole call of `finetune`: loading, preflight, encoding, training, scores, folders and reports.",
    notes=("One call of `finetune` with `seeds`, starting with an empty cache.",),
)

_TOP = {"epochs": 5, "learning_rate": 5e-4, "frozen": 2}
TOP_LAYERS = Case(
    "top_layers",
    "Top 2 layers, 5 epochs",
    (
        ours({"type": "top_layers", "k": 2}, 5),
        trainer(FP32_NAME, {**FP32, **_TOP}),
        trainer(BEST_NAME, {**BEST, **_TOP}, candidates=TUNED_FROZEN),
    ),
    (Comparison(FP32_NAME, target=8), Comparison(BEST_NAME, target=4)),
    notes=(RATES,),
)

_FULL = {"epochs": 3, "learning_rate": 1.5e-4}
LOOP_NAME = f"accelerate loop, fp32, batch {BATCH}"
FULL = Case(
    "full",
    "Full fine-tuning, 3 epochs",
    (
        ours({"type": "full_fine_tuning"}, 3),
        trainer(FP32_NAME, {**FP32, **_FULL}),
        trainer(BEST_NAME, {**BEST, **_FULL}, candidates=TUNED),
        Contestant(LOOP_NAME, "contestants.accelerate_loop", {**FP32, **_FULL}),
    ),
    (Comparison(FP32_NAME, target=6), Comparison(BEST_NAME, target=1.8), Comparison(LOOP_NAME)),
    notes=(RATES,),
)

_LORA = {"type": "lora", "r": 8, "targets": "query_value"}
PEFT_FP32, PEFT_BEST = f"PEFT + Trainer, fp32, batch {BATCH}", "PEFT + Trainer at its best"
LORA = Case(
    "lora",
    "LoRA, r = 8 on query and value, 3 epochs",
    (
        ours(_LORA, 3),
        peft(PEFT_FP32, FP32, 3, needs="peft"),
        peft(PEFT_BEST, BEST, 3, needs="peft", candidates=TUNED_FROZEN),
    ),
    (Comparison(PEFT_FP32, target=4), Comparison(PEFT_BEST, target=1.6)),
    notes=(RATES, "Pooler and classifier learn whole on both sides."),
)
LORA_TOP = Case(
    "lora_top",
    "LoRA on the top 2 layers, 5 epochs",
    (ours({**_LORA, "top_blocks": 2}, 5), peft(PEFT_FP32, FP32, 5, needs="peft", lora={"top_blocks": 2})),
    (Comparison(PEFT_FP32, target=6),),
    notes=(RATES, "Pooler and classifier learn whole on both sides."),
)

_GRADUAL = {"type": "gradual_unfreezing", "stages": 4}
UNFREEZING = Case(
    "unfreezing",
    "Gradual unfreezing, 4 stages, 6 epochs",
    (ours(_GRADUAL, 6, "cached"), ours(_GRADUAL, 6, "uncached", recipe={"cache": {"max_bytes": 0}})),
    (Comparison("uncached", "cached", 1.8),),
)

PEAK_NATIVE = "matrix product, dtype of the training"


def _share(
    name: str,
    strategy: str,
    epochs: int,
    counts: str,
    checkpoint: Literal["given", "bert-base"],
    tokens: int | None = None,
) -> Contestant:
    """hftransfer, with its operations counted. The stock head reads one token.

    Texts are joined up to a number of tokens, if one is given.
    """
    optim = {"num_train_epochs": epochs, "per_device_train_batch_size": BATCH}
    recipe = {"strategy": {"type": strategy}, "task": {"pooling": "own"}, "optim": optim}
    settings: dict[str, Any] = {"recipe": recipe, "counts": counts, "scored": False}
    settings |= {} if tokens is None else {"tokens": tokens}
    return Contestant(name, "contestants.ours", settings, checkpoint=checkpoint)


PEAK = Case(
    "peak",
    "Share of the matrix-product peak",
    (
        Contestant(PEAK_NATIVE, "peak", {"dtype": "native"}),
        Contestant("matrix product, fp32", "peak", {"dtype": "fp32"}),
        _share("forward, size of BERT-base", "feature_extraction", 2, "encoding", "bert-base"),
        _share("forward, the checkpoint", "feature_extraction", 2, "encoding", "given"),
        _share("training, size of BERT-base", "full_fine_tuning", 1, "loop", "bert-base"),
    ),
    (
        Comparison("forward, size of BERT-base", PEAK_NATIVE, 0.60, quantity="rate"),
        Comparison("forward, the checkpoint", PEAK_NATIVE, 0.45, quantity="rate"),
        Comparison("training, size of BERT-base", PEAK_NATIVE, 0.35, quantity="rate"),
        Comparison("matrix product, fp32", PEAK_NATIVE, quantity="rate"),
    ),
    timed="Forward: the encoding pass of the feature cache, storing included. Training: the loop with dropout and its "
    "one evaluation. The operations are those of the blocks on real tokens, by formula (benchmarks/peak.py).",
    notes=(
        "The peak is the best rate of `torch.nn.functional.linear` over five shapes.",
        "Dtype of the training: bf16 where the processor or a GPU computes in it, else fp32.",
    ),
)

_SIZED = {"strategy": {"type": "feature_extraction"}, "optim": {"num_train_epochs": 10}}
SIZES = Case(
    "sizes",
    "Cost against size: feature extraction, 10 epochs",
    tuple(
        Contestant(f"{times:g} times", "contestants.ours", {"recipe": _SIZED, "scored": False}, examples=times)
        for times in (0.5, 1, 2, 4, 8, 16, 32)
    ),
    series=True,
    notes=("Beyond the size of the data set, texts are copies with one word from another text.",),
)

STARTUP_NAME = "the same as run_glue with Trainer"
STARTUP = Case(
    "startup",
    "`hftransfer run` to the first training step, warm",
    (
        Contestant(OURS, "contestants.first_step", {"command": "hftransfer"}),
        Contestant(STARTUP_NAME, "contestants.first_step", {"command": "glue_script"}, needs="evaluate"),
    ),
    (Comparison(STARTUP_NAME, target=2),),
    timed="From the start of the process to the end of its first optimizer step: imports, data, model and tokenization "
    "included.",
    warm=True,
)

# Batches in random order: where launching kernels takes longer than they run, padding costs nothing.
BF16 = {**BEST, "precision": "bf16"}
BF16_NAME = f"Trainer, bf16, batch {BATCH}"
UNTUNED = "The Trainer's batches come in random order; no other of its settings was tried."
GPU_FEATURES = Case(
    "gpu_features",
    "Feature extraction, 10 epochs",
    (ours({"type": "feature_extraction"}, 10), trainer(BF16_NAME, {**BF16, **_HEAD})),
    (Comparison(BF16_NAME, target=20),),
    gpu=True,
    notes=(*FEATURES.notes[:3], UNTUNED),
)
GPU_FULL = Case(
    "gpu_full",
    "Full fine-tuning in the size of BERT-base, 3 epochs",
    (
        ours({"type": "full_fine_tuning"}, 3, checkpoint="bert-base"),
        trainer(BF16_NAME, {**BF16, **_FULL}, checkpoint="bert-base"),
    ),
    (Comparison(BF16_NAME, target=1.5),),
    gpu=True,
    notes=(RATES, UNTUNED, "Random weights: the accuracies say nothing but that both sides train."),
)
GPU_LORA = Case(
    "gpu_lora",
    "LoRA in the size of BERT-base, r = 8 on query and value, 3 epochs",
    (
        ours(_LORA, 3, checkpoint="bert-base"),
        peft("PEFT + " + BF16_NAME, BF16, 3, needs="peft", checkpoint="bert-base"),
    ),
    (Comparison("PEFT + " + BF16_NAME),),
    gpu=True,
    notes=(RATES, UNTUNED, "Pooler and classifier learn whole on both sides.", "Random weights, as above."),
)
GPU_PEAK = Case(
    "gpu_peak",
    "Share of the matrix-product peak",
    (
        Contestant(PEAK_NATIVE, "peak", {"dtype": "native"}),
        _share("forward, size of BERT-base, length 512", "feature_extraction", 2, "encoding", "bert-base", 512),
        _share("training, size of BERT-base, length 512", "full_fine_tuning", 1, "loop", "bert-base", 512),
    ),
    (
        Comparison("forward, size of BERT-base, length 512", PEAK_NATIVE, quantity="rate"),
        Comparison("training, size of BERT-base, length 512", PEAK_NATIVE, 0.40, quantity="rate"),
    ),
    timed=PEAK.timed,
    gpu=True,
    notes=(PEAK.notes[0], "Texts of the data set are joined until they have 512 tokens."),
)

CASES = {
    case.name: case
    for case in (
        FEATURES,
        ENCODING,
        HEADS,
        SEEDS,
        TOP_LAYERS,
        FULL,
        LORA,
        LORA_TOP,
        UNFREEZING,
        PEAK,
        SIZES,
        STARTUP,
        GPU_FEATURES,
        GPU_FULL,
        GPU_LORA,
        GPU_PEAK,
    )
}
