"""What a training costs before it runs: seconds, memory and cache bytes from the model's shape and measured rates.

Operations are counted from the model's config; how many a device does in a second is measured (`rates.py`) or given.
Nothing here imports torch.

Letters: D width, F inner width of the feed-forward part, L blocks, T tokens of a padded text, M matrix elements of a
block, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.data.batching import training_batches
from hftransfer.errors import AnatomyError

if TYPE_CHECKING:
    from hftransfer.strategies import Stage

# What configs call the same thing.
WIDTH = ("hidden_size", "d_model", "n_embd", "dim")
BLOCKS = ("num_hidden_layers", "n_layer", "n_layers")
INNER = ("intermediate_size", "d_ff", "n_inner", "hidden_dim", "encoder_ffn_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
POSITIONS = ("max_position_embeddings", "n_positions")
# Families whose feed-forward part has a third matrix, the gate, and whose positions are rotations, not embeddings.
GATED_AND_ROTARY = ("llama", "mistral", "qwen2", "modernbert")
FP32, MOMENTS = 4, 8
"""Bytes of a weight or gradient, and of AdamW's two moments of a weight."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide its cost.

    Attributes:
        width: D.
        inner: F.
        blocks: L, how many blocks a text passes.
        block_matrices: M, elements of the matrices of one block (the mean over an encoder's and a decoder's).
        block_parameters: Parameters of all blocks.
        embedding_parameters: Parameters below the blocks.
        head_parameters: Parameters above the blocks.
    """

    width: int
    inner: int
    blocks: int
    block_matrices: float
    block_parameters: int
    embedding_parameters: int
    head_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.embedding_parameters + self.block_parameters + self.head_parameters


def shape_of(config: Mapping[str, Any], num_labels: int = 2) -> Shape:
    """Read the sizes off a transformers config.

    M is 4 D^2 of the attention (less where heads share keys and values; 8 D^2 in a decoder that reads an encoder) and
    2 D F, or 3 D F with a gate. Biases and norms are left out of M; they are below one per cent of the parameters.

    Args:
        config: `config.to_dict()`, or the content of config.json.
        num_labels: Outputs of the head.

    Raises:
        AnatomyError: If the config does not say how large the model is.
    """
    width = _first(config, WIDTH)
    inner = _first(config, INNER, default=4 * width)
    heads = _first(config, HEADS, default=1)
    shared = width * (config.get("num_key_value_heads") or heads) // heads
    rotary = config.get("model_type") in GATED_AND_ROTARY
    gated = rotary or "gated" in str(config.get("feed_forward_proj", ""))
    own = 2 * width * width + 2 * width * shared + (3 if gated else 2) * width * inner
    encoders = config.get("encoder_layers") or config.get("num_layers") or 0
    decoders = config.get("decoder_layers") or config.get("num_decoder_layers") or 0
    blocks = encoders + decoders if decoders else _first(config, BLOCKS)
    matrices = blocks * own + decoders * 4 * width * width
    small = blocks * (9 * width + inner)
    distinct = config.get("num_hidden_groups") or blocks
    lookup = config.get("embedding_size") or width
    positions = 0 if rotary else _first(config, POSITIONS, default=0) + (config.get("type_vocab_size") or 0)
    return Shape(
        width=width,
        inner=inner,
        blocks=blocks,
        block_matrices=matrices / blocks,
        block_parameters=(matrices + small) * distinct // blocks,
        embedding_parameters=(int(config["vocab_size"]) + positions) * lookup,
        head_parameters=width * width + width * num_labels,
    )


def _first(config: Mapping[str, Any], names: Sequence[str], default: int | None = None) -> int:
    found = next((config[name] for name in names if config.get(name)), default)
    if found is None:
        raise AnatomyError("the config does not say how large the model is", where=f"none of {', '.join(names)}")
    return int(found)


@dataclass(frozen=True)
class Plan:
    """What a stage computes.

    Attributes:
        boundary: The lowest depth that learns.
        share: Of the optimizer steps.
        learned: Parameters that the optimizer updates.
        weight_gradients: Whether the weights of the blocks get gradients; with adapters they do not.
    """

    boundary: int
    share: float
    learned: int
    weight_gradients: bool = True

    def frozen_blocks(self, shape: Shape) -> int:
        """Blocks below the boundary."""
        return min(max(self.boundary - 1, 0), shape.blocks)


def plan_stages(stages: Sequence[Stage], shape: Shape, *, adapters: int | None = None) -> list[Plan]:
    """The plans of a strategy's stages.

    Args:
        stages: What `strategy.stages` says.
        shape: The model's.
        adapters: How many parameters are inserted, for a strategy that trains these and the head alone.
    """
    plans = []
    for stage in stages:
        above = 1 - Plan(stage.boundary, stage.share, 0).frozen_blocks(shape) / shape.blocks
        learned = round(above * shape.block_parameters) + (shape.embedding_parameters if stage.boundary == 0 else 0)
        learned = learned if adapters is None else adapters
        plans.append(Plan(stage.boundary, stage.share, learned + shape.head_parameters, adapters is None))
    return plans


@dataclass(frozen=True)
class Texts:
    """How long texts are, padding included.

    Attributes:
        count: How many.
        tokens: Mean T.
        squared: Mean T^2.
    """

    count: int
    tokens: float
    squared: float


def padded_texts(lengths: NDArray[np.integer], batch_size: int, count: int | None = None) -> Texts:
    """The lengths of texts as the batches of the first epoch pad them.

    Args:
        lengths: Tokens of each text, or of a sample.
        batch_size: Examples per forward pass.
        count: How many texts there are, where `lengths` is a sample.
    """
    batches = training_batches(lengths, global_batch_size=batch_size, seed=0, epoch=0)
    padded = np.concatenate([np.full(len(batch), lengths[batch].max()) for batch in batches]).astype(np.float64)
    return Texts(len(lengths) if count is None else count, float(padded.mean()), float((padded**2).mean()))


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Attributes:
        forward: Operations of a pass without gradients.
        training: Operations of a forward and backward pass.
        updates: Parameters that the optimizer updates.
        link: Bytes that a device sends to others; None leaves communication out.
    """

    forward: float
    training: float
    updates: float
    link: float | None = None


@dataclass(frozen=True)
class Setting:
    """How the work is done.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Examples per device and step.
        devices: How many.
        sharded: Whether weights, gradients and moments are sharded over them (FSDP2, ZeRO-3).
        activation_bytes: Of one number: 4 in fp32, 2 with mixed precision.
        recompute: Gradient checkpointing.
        cached: Whether frozen blocks may be computed once and kept; see `caches`.
        cache_bytes: Of one number in the cache.
        cache_per_token: Whether states of all tokens are kept above the last block, not one vector per text.
        evaluations: How often the validation data are scored; after every epoch when absent.
    """

    epochs: float
    batch_size: int
    devices: int = 1
    sharded: bool = False
    activation_bytes: int = FP32
    recompute: bool = False
    cached: bool = True
    cache_bytes: int = FP32
    cache_per_token: bool = False
    evaluations: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a training costs.

    Attributes:
        encoding_seconds: The one pass through the frozen blocks.
        training_seconds: All optimizer steps.
        evaluating_seconds: The validation data, as often as they are scored.
        memory: Bytes on each device: weights, gradients, moments, activations.
        cache_bytes: What the feature cache keeps on disk.
        operations: Of encoding, training and evaluation, on all devices together.
    """

    encoding_seconds: float
    training_seconds: float
    evaluating_seconds: float
    memory: Mapping[str, int]
    cache_bytes: int
    operations: float

    @property
    def seconds(self) -> float:
        """From the first step to the last evaluation."""
        return self.encoding_seconds + self.training_seconds + self.evaluating_seconds

    @property
    def memory_bytes(self) -> int:
        """On each device."""
        return sum(self.memory.values())


def forward_operations(shape: Shape, texts: Texts, blocks: int) -> float:
    """Operations of one pass of one text through some blocks: per block 2 T M + 4 T^2 D.

    A multiplication and an addition are two operations. The second term is the attention's scores and its mixing.
    """
    return blocks * (2 * texts.tokens * shape.block_matrices + 4 * texts.squared * shape.width)


def training_operations(shape: Shape, texts: Texts, plan: Plan, *, cached: bool, recompute: bool = False) -> float:
    """Operations of one text in a training step.

    Blocks that learn: the forward pass once, and in the backward pass as much again for the gradient of their inputs
    and as much again for that of their matrices (not with adapters); the attention has no matrices but two inputs,
    so its backward pass is always twice its forward pass. Recomputation adds a forward pass. Frozen blocks: the
    forward pass, or nothing where they are cached. The head: 6 per parameter.
    """
    frozen = plan.frozen_blocks(shape)
    matrices = 2 * texts.tokens * shape.block_matrices
    attention = 4 * texts.squared * shape.width
    passes = (3 if plan.weight_gradients else 2) + recompute
    learning = (shape.blocks - frozen) * (passes * matrices + (3 + recompute) * attention)
    below = 0.0 if cached else forward_operations(shape, texts, frozen)
    return learning + below + 6.0 * shape.head_parameters


def memory(shape: Shape, texts: Texts, plan: Plan, setting: Setting) -> dict[str, int]:
    """Bytes on each device in a stage.

    Weights 4 P, and 2 P more for their copy in mixed precision; gradients 4 and moments 8 bytes per learned parameter;
    all divided by the devices where they are sharded. Activations per token and learning block after Korthikanti et
    al. 2022 (arXiv:2205.05198), without the T^2 of an attention that keeps its scores: 18 D + 4 F in 2-byte numbers;
    with recomputation 2 D per block and one whole block.
    """
    shards = setting.devices if setting.sharded else 1
    copies = FP32 + (setting.activation_bytes if setting.activation_bytes < FP32 else 0)
    per_token = (18 * shape.width + 4 * shape.inner) * setting.activation_bytes / 2
    learning = shape.blocks - plan.frozen_blocks(shape)
    if setting.recompute:
        blocks = learning * shape.width * setting.activation_bytes + per_token
    else:
        blocks = max(learning, 1) * per_token
    return {
        "weights": copies * shape.parameters // shards,
        "gradients": FP32 * plan.learned // shards,
        "moments": MOMENTS * plan.learned // shards,
        "activations": round(setting.batch_size * texts.tokens * blocks),
    }


def synchronising_seconds(plan: Plan, shape: Shape, setting: Setting, link: float | None) -> float:
    """What a step's communication takes if nothing overlaps it.

    DDP sends and receives 2 (n - 1) / n times the gradients (a ring's all-reduce); sharding gathers the weights for
    the forward and the backward pass and scatters the gradients, each (n - 1) / n.
    """
    if link is None or setting.devices == 1:
        return 0.0
    share = (setting.devices - 1) / setting.devices
    if setting.sharded:
        return share * (2 * setting.activation_bytes * shape.parameters + FP32 * plan.learned) / link
    return 2 * share * FP32 * plan.learned / link


def caches(plans: Sequence[Plan], setting: Setting) -> bool:
    """Whether the cache is used: stages with frozen blocks see the training data more than once, all together."""
    passes = setting.epochs * sum(plan.share for plan in plans if plan.boundary > 1)
    return setting.cached and not setting.sharded and passes > 1


def estimate(
    shape: Shape,
    plans: Sequence[Plan],
    train: Texts,
    validation: Texts,
    setting: Setting,
    rates: Sequence[Rates],
) -> Cost:
    """Add up what all stages cost.

    seconds = encoding + sum over stages of steps * (max(operations / rate, communication) + learned / updates)
    + evaluations. Communication overlaps the backward pass, so the longer of the two counts.

    Args:
        shape: The model's.
        plans: Its stages.
        train: Training texts.
        validation: Validation texts.
        setting: How the work is done.
        rates: Of each stage, on one device.
    """
    steps = train.count * setting.epochs / (setting.batch_size * setting.devices)
    kept = caches(plans, setting)
    taps = [plan.frozen_blocks(shape) for plan in plans if kept and plan.boundary > 1]
    everything = train.count + validation.count
    prefix = forward_operations(shape, train, max(taps, default=0))
    operations, encoding = everything * prefix, everything * prefix / (rates[0].forward * setting.devices)
    evaluations = setting.epochs if setting.evaluations is None else setting.evaluations
    training = evaluating = 0.0
    for plan, rate in zip(plans, rates, strict=True):
        cached = kept and plan.boundary > 1
        per_text = training_operations(shape, train, plan, cached=cached, recompute=setting.recompute)
        computing = setting.batch_size * per_text / rate.training
        sending = synchronising_seconds(plan, shape, setting, rate.link)
        updating = plan.learned / (setting.devices if setting.sharded else 1) / rate.updates
        training += plan.share * steps * (max(computing, sending) + updating)
        blocks = shape.blocks - (plan.frozen_blocks(shape) if cached else 0)
        scoring = plan.share * evaluations * validation.count * forward_operations(shape, validation, blocks)
        evaluating += scoring / (rate.forward * setting.devices)
        operations += plan.share * setting.epochs * train.count * per_text + scoring
    largest = max((memory(shape, train, plan, setting) for plan in plans), key=lambda parts: sum(parts.values()))
    return Cost(
        encoding, training, evaluating, largest, _cache_bytes(shape, plans, everything, train, setting), operations
    )


def _cache_bytes(shape: Shape, plans: Sequence[Plan], texts: int, train: Texts, setting: Setting) -> int:
    """Kept vectors * D * bytes of a number, for every boundary that is cached."""
    if not caches(plans, setting):
        return 0
    numbers = 0.0
    for boundary in {plan.boundary for plan in plans if plan.boundary > 1}:
        one = boundary > shape.blocks and not setting.cache_per_token
        numbers += texts * (1 if one else train.tokens) * shape.width
    return round(numbers * setting.cache_bytes)
