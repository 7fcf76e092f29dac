"""How far a training moved the backbone's states, by depth: linear CKA and cosine on a sample of texts.

Shape legend: N tokens, D width of a state, E width of another, B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hftransfer.caching.states import PlainInputs
from hftransfer.strategies.freezing import anatomy_of, transformers_model
from hftransfer.tasks.base import IGNORED
from hftransfer.training.language_model import spread_rows

if TYPE_CHECKING:
    from hftransfer.tasks.base import Features, Task

MOST_ROWS, MOST_TOKENS = 64, 2048
"""Of a split so many rows are read, and of their tokens so many are compared."""

States = dict[int, Tensor]
"""Depth -> states (N, D) of the same tokens, on the CPU."""


@dataclass(frozen=True)
class Drift:
    """How like the states before and after a training are, by depth; 1 = unchanged.

    Attributes:
        depths: 0 = embeddings, 1..L = blocks.
        cka: Linear CKA: blind to rotation and scale, so it falls only where relations between tokens change.
        cosine: Mean cosine of a token's two states: what a head that stayed as it was would notice.
        tokens: How many were compared.
    """

    depths: list[int]
    cka: list[float]
    cosine: list[float]
    tokens: int


def linear_cka(states_ND: Tensor, others_NE: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414, section 3.3).

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of centred columns; between 0 and 1. With few tokens in many dimensions
    it is too high. Undefined (NaN) where a side is constant.
    """
    first_ND, second_NE = (values.double() - values.double().mean(0) for values in (states_ND, others_NE))
    within = torch.linalg.matrix_norm(first_ND.mT @ first_ND) * torch.linalg.matrix_norm(second_NE.mT @ second_NE)
    between = torch.linalg.matrix_norm(second_NE.mT @ first_ND).square()
    return float(between / within)


def mean_cosine(states_ND: Tensor, others_ND: Tensor) -> float:
    """The mean over tokens of the cosine between two states."""
    return float(nn.functional.cosine_similarity(states_ND.double(), others_ND.double(), dim=1).mean())


def compare_states(before: Mapping[int, Tensor], after: Mapping[int, Tensor]) -> Drift:
    """The drift between states of the same tokens."""
    depths = sorted(before.keys() & after.keys())
    return Drift(
        depths,
        [linear_cka(before[depth], after[depth]) for depth in depths],
        [mean_cosine(before[depth], after[depth]) for depth in depths],
        len(next(iter(before.values()), ())),
    )


def capture_states(model: nn.Module, task: Task, features: Features) -> States:
    """The states at every depth of a sample of rows, in eval mode and in the precision of the weights.

    Args:
        model: A transformers model, or a PEFT model around one.
        task: Collates.
        features: The rows.
    """
    inputs, device = PlainInputs(task, features), next(model.parameters()).device
    rows = np.asarray(_sample(features), np.int64)
    batch = {name: tensor.to(device) for name, tensor in inputs.collate(rows).items()}
    return states_of(model, batch, lambda: inputs.run(model, batch))


@torch.no_grad()
def states_of(model: nn.Module, batch: Mapping[str, Tensor], run: Callable[[], Any]) -> States:
    """The states of a batch's tokens at every depth that a forward pass comes through, in eval mode.

    Args:
        model: A transformers model, or a PEFT model around one.
        batch: Its masks say which tokens are real.
        run: Runs the model on the batch.
    """
    inner, anatomy = transformers_model(model), anatomy_of(model)
    found: States = {}

    def keep(depth: int, hidden_BTD: Tensor) -> None:
        # A block that is applied several times (ALBERT) is seen last.
        in_second_stack = 0 < anatomy.num_encoder_blocks < depth
        found[depth] = _tokens(hidden_BTD, real_tokens(batch, of_decoder=in_second_stack))

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if 0 not in found:
            keep(0, args[0] if args else kwargs["hidden_states"])

    hooks = [inner.get_submodule(anatomy.blocks[0]).register_forward_pre_hook(keep_input, with_kwargs=True)]
    for depth, path in enumerate(anatomy.blocks, 1):
        hooks.append(
            inner.get_submodule(path).register_forward_hook(lambda _, __, output, at=depth: keep(at, _first(output)))
        )
    training = model.training
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            run()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def _sample(features: Features) -> list[int]:
    """Rows spread over a split, as few as hold enough tokens."""
    rows = spread_rows(len(features), MOST_ROWS)
    total = np.cumsum(features.lengths_N[rows])
    return rows[: int(np.searchsorted(total, 2 * MOST_TOKENS)) + 1]


def real_tokens(batch: Mapping[str, Tensor], *, of_decoder: bool) -> Tensor | None:
    """Which tokens of a batch are no padding, (B, T); None where nothing says it.

    Args:
        batch: What the model is given, and the labels.
        of_decoder: Whether the tokens of an encoder-decoder's decoder are meant.
    """
    if of_decoder and "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"].bool()
    if of_decoder and "decoder_input_ids" in batch:
        labels = batch.get("labels")
        return labels != IGNORED if labels is not None and labels.shape == batch["decoder_input_ids"].shape else None
    # The decoder of a classifier reads the encoder's tokens. Multiple choice: (1, S, T).
    mask = batch.get("attention_mask")
    return None if mask is None else mask.reshape(-1, mask.shape[-1]).bool()


def _tokens(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The states of real tokens, (N, D), at most `MOST_TOKENS` of them, spread."""
    known = mask_BT is not None and mask_BT.shape == hidden_BTD.shape[:2]
    flat_ND = hidden_BTD[mask_BT] if known else hidden_BTD.flatten(0, -2)
    return flat_ND[spread_rows(len(flat_ND), MOST_TOKENS)].float().cpu()


def _first(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor
