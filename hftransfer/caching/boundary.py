"""Split a model at its boundary: compute the states there once, run the rest from them.

The frozen blocks become pass-throughs and the states are put in by a hook; masks, positions and heads stay with
transformers' own modules. Where a head reads one vector per text, that vector alone is kept and the model runs on texts
of one token.

Shape legend: B rows of a batch, T tokens, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hftransfer.models.families import FAMILIES
from hftransfer.strategies.freezing import anatomy_of, transformers_model

if TYPE_CHECKING:
    from hftransfer.models.anatomy import Anatomy

HeadInput = Literal["tokens", "first", "last", "mean"]

# What a replayed fp32 pass may differ from a whole one: padding changes the order of sums.
CHECK_TOLERANCE = 1e-4


class CannotSplitError(Exception):
    """This model cannot be run from states at this boundary; the message says why."""


class _Reached(Exception):
    """Everything that was asked for has been captured: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Tap:
    """Where the states of a boundary are taken and put in.

    Attributes:
        boundary: The boundary.
        module: Path of the module.
        at_input: Whether the states are the module's first input, else its first output.
        resting: Paths of the blocks that pass through when the model runs from the states.
        head_input: What is kept of the states: all tokens, or the vector that the head reads.
        pooling_block: Path of the pooling block, where one lies below the boundary.
    """

    boundary: int
    module: str
    at_input: bool
    resting: tuple[str, ...]
    head_input: HeadInput
    pooling_block: str | None = None


def find_tap(model: nn.Module, boundary: int) -> Tap:
    """Where to cut a model at a boundary.

    A boundary at a block is cut at that block's input. Above all blocks, and in a decoder that reads a frozen encoder,
    it is cut at the output of the last frozen stack.

    Args:
        model: A transformers model, or a PEFT model around one.
        boundary: The lowest depth that learns.

    Raises:
        CannotSplitError: If nothing worth keeping lies below, or the model cannot be cut there.
    """
    anatomy = anatomy_of(model)
    if boundary <= 1:
        raise CannotSplitError("nothing but the embeddings is frozen")
    if boundary <= anatomy.num_blocks and anatomy.shared_repeats > 1:
        raise CannotSplitError(f"the blocks of {anatomy.model_class} share their weights, so part of them cannot rest")
    encoder = anatomy.blocks[: anatomy.num_encoder_blocks]
    has_decoder = 0 < len(encoder) < anatomy.num_blocks
    # What a decoder computes follows from the output, too, and its states are as many as that has tokens.
    reads_output = has_decoder and anatomy.model_class.endswith("ForConditionalGeneration")
    if boundary > anatomy.num_blocks and not reads_output:
        blocks = (*anatomy.blocks, *anatomy.constant)
        pooling_block = next(iter(anatomy.constant), None)
        return Tap(boundary, _stack(anatomy.blocks[-1]), False, blocks, _head_input(model, anatomy), pooling_block)
    if has_decoder and boundary > len(encoder):
        return Tap(boundary, _stack(encoder[-1]), False, encoder, "tokens")
    return Tap(boundary, anatomy.blocks[boundary - 1], True, anatomy.blocks[: boundary - 1], "tokens")


def _stack(block: str) -> str:
    """Path of the module that applies a stack of blocks: the parent of their list."""
    return ".".join(block.split(".")[:-2])


def _head_input(model: nn.Module, anatomy: Anatomy) -> HeadInput:
    """What the head reads of the last states: one vector in a sequence classifier, else every token."""
    config: Any = transformers_model(model).config
    if not anatomy.model_class.endswith("ForSequenceClassification"):
        return "tokens"
    pooling = getattr(config, "classifier_pooling", None)
    if pooling is not None:
        return "mean" if pooling == "mean" else "first"
    return FAMILIES[config.model_type].head_token


class Replay:
    """Runs a model from states at a boundary. Use it as a context manager; outside of it the model is as it was.

    Args:
        model: A transformers model, or a PEFT model around one, in the stage of this boundary.
        tap: Where it is cut.
    """

    def __init__(self, model: nn.Module, tap: Tap) -> None:
        self.inner, self.tap = transformers_model(model), tap
        self._states_BTD: torch.Tensor | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Replay:
        family = FAMILIES[self.inner.config.model_type]
        for path in self.tap.resting:
            block = self.inner.get_submodule(path)
            pass_through = _share_bias if family.shares_position_bias else _pass_through
            # On the instance, in front of the class's own forward.
            block.__dict__["forward"] = self._resting_forward(block, block.forward, pass_through)
        module = self.inner.get_submodule(self.tap.module)
        if self.tap.at_input:
            self._hooks = [module.register_forward_pre_hook(self._put_in, with_kwargs=True)]
        else:
            self._hooks = [module.register_forward_hook(self._put_out)]
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.tap.resting:
            del self.inner.get_submodule(path).__dict__["forward"]
        for hook in self._hooks:
            hook.remove()
        self._states_BTD = None

    def feed(self, states_BTD: torch.Tensor | None) -> None:
        """Run the next forward passes from these states; None runs the whole model again."""
        self._states_BTD = states_BTD

    def _resting_forward(
        self, block: nn.Module, forward: Callable[..., Any], pass_through: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The forward of a resting block: passes through while there are states to put in behind it."""
        # Learnt from a real pass: the length of the tuple that the block puts out, None for a tensor.
        form: list[Any] = []

        def resting(*args: Any, **kwargs: Any) -> Any:
            if self._states_BTD is None or not form:
                output = forward(*args, **kwargs)
                form[:] = [len(output) if isinstance(output, tuple) else None]
                return output
            return pass_through(block, form[0], *args, **kwargs)

        return resting

    def _put_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._states_BTD is None:
            return None
        if args:
            return (self._states_BTD, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._states_BTD}

    def _put_out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output if self._states_BTD is None else _with_first(output, self._states_BTD)

    @torch.no_grad()
    def check(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Compare a whole pass with one from states, in eval mode and fp32.

        Args:
            inputs: A padded batch on the model's device, without labels.

        Raises:
            CannotSplitError: If the outputs differ.
        """
        training, previous = self.inner.training, self._states_BTD
        self.inner.eval()
        try:
            self.feed(None)
            expected = _first(_run(self.inner, inputs))
            states_BTD = capture(self.inner, [self.tap], inputs)[self.tap.boundary]
            self.feed(states_BTD)
            found = _first(_run(self.inner, reduce_inputs(inputs, self.tap.head_input)))
        finally:
            self.feed(previous)
            self.inner.train(training)
        if found.shape != expected.shape:
            raise CannotSplitError(f"{type(self.inner).__name__} gives another shape when run from states")
        error = float((found - expected).abs().max() / (1 + expected.abs().max()))
        if not error <= CHECK_TOLERANCE:
            raise CannotSplitError(f"{type(self.inner).__name__} differs by {error:.1e} when run from states")


@torch.no_grad()
def capture(model: nn.Module, taps: Sequence[Tap], inputs: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """`states_at` without gradients; what lies below the boundaries must be in eval mode."""
    return states_at(model, taps, inputs)


def states_at(model: nn.Module, taps: Sequence[Tap], inputs: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """The states at some boundaries, in one forward pass that ends at the last of them.

    Args:
        model: The model.
        taps: Where to take them.
        inputs: A padded batch (B, T) on the model's device, without labels.

    Returns:
        Boundary -> states: (B, T, D), or (B, 1, D) where one vector per row is kept.
    """
    inner = transformers_model(model)
    found: dict[int, torch.Tensor] = {}

    def keep(tap: Tap, hidden_BTD: torch.Tensor) -> None:
        found.setdefault(tap.boundary, hidden_BTD)
        if len(found) == len(taps):
            raise _Reached

    hooks = [_capture_hook(inner, tap, keep) for tap in taps]
    try:
        _run(inner, inputs)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    # Out here, since what runs inside of a block may be computed once more for its gradient.
    for tap in taps:
        if tap.pooling_block is not None:
            block = inner.get_submodule(tap.pooling_block)
            found[tap.boundary] = pool(block, found[tap.boundary], inputs["attention_mask"])
        found[tap.boundary] = select(found[tap.boundary], inputs.get("attention_mask"), tap.head_input)
    return found


def _run(inner: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The class's own forward: accelerate's on the instance switches autocast on, whatever the caller has chosen."""
    return type(inner).forward(inner, **inputs)


def pool(block: nn.Module, hidden_BTD: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
    """What the pooling block makes of the first token, at the price of two tokens per text, in fp32.

    The block sees the first token and the mean of all (`models/pooling.py`), so a text of the first token and its
    mirror image across the mean gives the same.

    Returns:
        (B, 2, D), the first token first.
    """
    hidden_BTD = hidden_BTD.float()
    mean_B1D = select(hidden_BTD, attention_mask_BT, "mean")
    pair_B2D = torch.cat([hidden_BTD[:, :1], 2 * mean_B1D - hidden_BTD[:, :1]], 1)
    with torch.autocast(hidden_BTD.device.type, enabled=False):
        # Not through the hooks: one of them has brought us here.
        return _first(block.forward(pair_B2D))


def _capture_hook(inner: nn.Module, tap: Tap, keep: Callable[[Tap, torch.Tensor], None]) -> Any:
    module = inner.get_submodule(tap.pooling_block or tap.module)
    if tap.at_input or tap.pooling_block is not None:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: keep(tap, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: keep(tap, _first(output)))


def select(hidden_BTD: torch.Tensor, attention_mask_BT: torch.Tensor | None, head_input: HeadInput) -> torch.Tensor:
    """What is kept of the states of a batch that is padded on the right: (B, T, D), or (B, 1, D) for one vector."""
    if head_input == "tokens":
        return hidden_BTD
    if head_input == "first":
        return hidden_BTD[:, :1]
    assert attention_mask_BT is not None, "packed rows have several texts, so none of their vectors is the one"
    if head_input == "last":
        last_B = attention_mask_BT.sum(1) - 1
        return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B][:, None]
    mask_BT1 = attention_mask_BT[:, :, None].to(hidden_BTD.dtype)
    return (hidden_BTD * mask_BT1).sum(1, keepdim=True) / mask_BT1.sum(1, keepdim=True)


def reduce_inputs(inputs: Mapping[str, torch.Tensor], head_input: HeadInput) -> dict[str, torch.Tensor]:
    """The inputs of texts of one token: the token that the head reads."""
    if head_input == "tokens":
        return dict(inputs)
    mask_BT = inputs["attention_mask"]
    position_B = mask_BT.sum(1) - 1 if head_input == "last" else torch.zeros_like(mask_BT[:, 0])
    return {name: tensor.gather(1, position_B[:, None]) for name, tensor in inputs.items()}


def _pass_through(block: nn.Module, length: int | None, *args: Any, **kwargs: Any) -> Any:
    """The block's input in the form of its output."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return hidden if length is None else (hidden, *(None,) * (length - 1))


def _share_bias(block: nn.Module, length: int | None, *args: Any, **kwargs: Any) -> Any:
    """T5: every block hands on the position biases, and the first one of a stack makes them."""
    given = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    hidden_BTD, position_bias = given["hidden_states"], given.get("position_bias")
    attention: Any = block.get_submodule("layer.0.SelfAttention")
    if position_bias is None and attention.has_relative_attention_bias:
        tokens = hidden_BTD.shape[1]
        position_bias = attention.compute_bias(tokens, tokens, device=hidden_BTD.device)
    return hidden_BTD, position_bias, given.get("encoder_decoder_position_bias")


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


def _with_first(output: Any, states_BTD: torch.Tensor) -> Any:
    """A module's output with its first tensor replaced, wherever it stands (DeBERTa reads its last hidden state)."""
    old = _first(output)

    def replaced(value: Any) -> Any:
        if value is old:
            return states_BTD
        return tuple(map(replaced, value)) if isinstance(value, tuple) else value

    if isinstance(output, torch.Tensor | tuple):
        return replaced(output)
    for name in list(output.keys()):
        setattr(output, name, replaced(output[name]))
    return output
