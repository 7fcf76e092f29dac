"""Texts longer than the model reads, as overlapping windows of tokens with their place in the text.

Shape legend: R rows (windows), S tokens of all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.errors import CheckpointError, RecipeError
from hftransfer.recipe import WindowedTask
from hftransfer.tasks.tokenization import empty_token

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

CHUNK = 1024
STRIDE_SHARE = 4
"""Neighbouring windows share max_length divided by this, unless the recipe says."""
SPECIAL = -1
"""In place of the number of the text, for tokens that belong to none."""


@dataclass(frozen=True)
class Windows:
    """Encoded windows; token values are flat, row i is `[offsets[i] : offsets[i + 1]]`.

    Attributes:
        columns: Name of a model input -> values, (S,).
        offsets_N1: Where each row starts, and the end.
        example_N: The example of each row, ascending.
        starts_S: Where each token starts in its text, in characters.
        ends_S: Where it ends.
        text_S: 0 for the first text, 1 for the second, `SPECIAL` for special tokens.
        truncated_examples: How many examples lost tokens.
        truncated_tokens: How many tokens were lost.
    """

    columns: dict[str, NDArray[np.int32]]
    offsets_N1: NDArray[np.int64]
    example_N: NDArray[np.int64]
    starts_S: NDArray[np.int64]
    ends_S: NDArray[np.int64]
    text_S: NDArray[np.int64]
    truncated_examples: int
    truncated_tokens: int

    def row(self, number: int) -> slice:
        """The tokens of a row."""
        return slice(int(self.offsets_N1[number]), int(self.offsets_N1[number + 1]))


HEAD_SHARE = 4
"""Of head and tail the head is one part in so many, about as in arXiv:1905.05583, section 5.3.1 (128 of 510)."""


def check_tagging(settings: WindowedTask, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what cannot say something of every place in a text.

    Raises:
        RecipeError: If the middle of long texts would be left out.
        CheckpointError: If the tokenizer does not know places.
    """
    if settings.long_inputs == "head_tail":
        raise RecipeError("is for text classification", where="task.long_inputs head_tail", fix="use windows or head")
    check_offsets(tokenizer)


def check_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot say where in the text its tokens are.

    Raises:
        CheckpointError: If it is one of the slow tokenizers.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} does not say where its tokens are in the text",
            where="tokenizer",
            fix="use a checkpoint with a tokenizer.json",
        )


def tokenize_windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    settings: WindowedTask,
) -> Windows:
    """Tokenize texts, or pairs whose second text is cut into windows that all begin with the first.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts. Of a pair, what is longer than half of a window is cut off.
        pairs: The second texts.
        max_length: Tokens per window, special tokens included.
        settings: Whether long inputs are read in windows, and their overlap.

    Raises:
        RecipeError: If the overlap leaves no room for anything new in a window.
    """
    in_windows = settings.long_inputs != "head"
    first, lost = (list(texts), Counter[int]()) if pairs is None else _shortened(tokenizer, texts, max_length // 2)
    stride = _stride(tokenizer, first, max_length, settings, pairs is not None) if in_windows else 0
    found = _Collected(of_pairs=pairs is not None, keeps_all=in_windows, empty=empty_token(tokenizer))
    found.lost.update(lost)
    for start in range(0, len(first), CHUNK):
        encoded = tokenizer(
            first[start : start + CHUNK],
            None if pairs is None else list(pairs[start : start + CHUNK]),
            truncation=True if pairs is None else "only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        found.add(encoded, start)
    return found.windows()


class _Collected:
    """The windows of one chunk after another.

    Args:
        of_pairs: Whether it is the second text that is cut.
        keeps_all: Whether all windows of an example are kept, else the first alone, and the rest is counted as lost.
        empty: What stands for a text without tokens.
    """

    def __init__(self, *, of_pairs: bool, keeps_all: bool, empty: int) -> None:
        self.of_pairs, self.keeps_all, self.empty = of_pairs, keeps_all, empty
        self.columns: dict[str, list[NDArray[np.int32]]] = {}
        self.places: list[list[NDArray[np.int64]]] = [[], [], []]
        self.lengths: list[int] = []
        self.examples: list[int] = []
        self.lost: Counter[int] = Counter()

    def add(self, encoded: BatchEncoding, start: int) -> None:
        """Take the rows of a chunk whose first example has this number."""
        seen = -1
        for row, position in enumerate(encoded["overflow_to_sample_mapping"]):
            example = start + position
            texts_T = np.asarray([SPECIAL if one is None else one for one in encoded.sequence_ids(row)], np.int64)
            ids = {name: encoded[name][row] for name in ("input_ids", "token_type_ids") if name in encoded}
            spans = encoded["offset_mapping"][row]
            if not len(texts_T):
                texts_T, spans = np.asarray([SPECIAL]), [(0, 0)]
                ids = {name: [self.empty if name == "input_ids" else 0] for name in ids}
            if example == seen and not self.keeps_all:
                self.lost[example] += int((texts_T == int(self.of_pairs)).sum())
                continue
            seen = example
            spans_T2 = np.asarray(spans, np.int64).reshape(-1, 2)
            for kept, values in zip(self.places, (spans_T2[:, 0], spans_T2[:, 1], texts_T), strict=True):
                kept.append(values)
            for name, values in ids.items():
                self.columns.setdefault(name, []).append(np.asarray(values, np.int32))
            self.lengths.append(len(texts_T))
            self.examples.append(example)

    def windows(self) -> Windows:
        """All of them."""
        starts_S, ends_S, text_S = (np.concatenate(part) if part else np.empty(0, np.int64) for part in self.places)
        return Windows(
            {name: np.concatenate(parts) for name, parts in self.columns.items()},
            np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64),
            np.asarray(self.examples, np.int64),
            starts_S,
            ends_S,
            text_S,
            truncated_examples=len(self.lost),
            truncated_tokens=self.lost.total(),
        )


def with_end(windows: Windows, end: int) -> Windows:
    """The windows, each with one more token behind it, which belongs to no text."""
    ends_R = windows.offsets_N1[1:]

    def longer(values_S: NDArray[Any], value: int) -> NDArray[Any]:
        return np.insert(values_S, ends_R, value)

    return replace(
        windows,
        columns={
            name: longer(values_S, end if name == "input_ids" else 0) for name, values_S in windows.columns.items()
        },
        offsets_N1=windows.offsets_N1 + np.arange(len(windows.offsets_N1)),
        starts_S=longer(windows.starts_S, 0),
        ends_S=longer(windows.ends_S, 0),
        text_S=longer(windows.text_S, SPECIAL),
    )


def head_and_tail(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> tuple[list[str], int]:
    """The texts that fit, and of the others what the first and the last tokens of an input come from.

    Returns:
        The texts, and how many tokens were left out.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=False)
    head = room // HEAD_SHARE
    found, lost = [], 0
    for text in texts:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(spans) > room:
            lost += len(spans) - room
            # A cut at the edges of tokens; the space keeps the two parts from growing together.
            text = f"{text[: spans[head - 1][1]] if head else ''} {text[spans[head - room][0] :]}".strip()
        found.append(text)
    return found, lost


def _shortened(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> tuple[list[str], Counter[int]]:
    """The texts, cut where they have more than so many tokens (the second text needs room); how many each lost."""
    found: list[str] = []
    lost: Counter[int] = Counter()
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, spans in zip(chunk, encoded["offset_mapping"], strict=True):
            # A character may have several tokens; one whose last ones are cut off goes as a whole.
            end = min(spans[most - 1][1], spans[most][0]) if len(spans) > most else len(text)
            if end < len(text) and len(spans) > most:
                lost[len(found)] = sum(stop > end for _, stop in spans)
            found.append(text[:end])
    return found, lost


def _stride(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, settings: WindowedTask, is_pair: bool
) -> int:
    """The overlap of neighbouring windows in tokens."""
    special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    longest = max_length // 2 if is_pair else 0
    room = max_length - special - longest
    stride = min(max_length // STRIDE_SHARE, max(room - 1, 0)) if settings.stride is None else settings.stride
    if room < 1 or stride >= room:
        raise RecipeError(
            f"windows of {max_length} tokens that share {stride} leave no room for new ones",
            where="task.stride" if settings.stride is not None else "data.max_length",
            fix=f"set a stride below {room}" if room > 1 else "set a larger max_length",
        )
    return stride
