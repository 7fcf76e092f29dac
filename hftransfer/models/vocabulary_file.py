"""A tokenizer from a lone vocab.txt, where the vocabulary itself says how texts are split.

transformers reads such a file for BERT alone. Two kinds are recognised, both with BERT's special tokens: WordPiece, by
its "##" pieces, and SMILES, the notation of molecules and reactions, where every entry is one symbol of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence as InTurn
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_PLACEHOLDER = re.compile(r"\[unused\d+\]")
SMILES = r"\[[^\[\]]+\]|Br|Cl|%[0-9]{2}|>>|[BCFINOPSbcnops0-9()=#$:~@?*./\\+>-]"
"""The symbols of SMILES: atoms, bracket atoms, bonds, branches, ring closures and reaction arrows, split as in
doi:10.1021/acscentsci.9b00576."""
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def tokenizer_from_vocabulary(vocabulary: Path, config: Path | None) -> tuple[PreTrainedTokenizerBase, str] | None:
    """The tokenizer that a vocabulary defines, and a line that says how it was read; None if it does not say.

    Args:
        vocabulary: A file with a token per line; the number of the line is its id.
        config: The checkpoint's tokenizer_config.json, which may hold `do_lower_case`.
    """
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    if not set(SPECIAL.values()) <= set(tokens) or len(set(tokens)) != len(tokens):
        return None
    ordinary = [token for token in tokens if token not in SPECIAL.values() and not _PLACEHOLDER.fullmatch(token)]
    if any(token.startswith("##") for token in ordinary):
        lowers = _lowers(ordinary, config)
        case = "lower-case" if lowers else "cased"
        return _word_pieces(tokens, lowers), f"the tokenizer is a {case} WordPiece of vocab.txt, which has '##' pieces"
    if ordinary and all(re.fullmatch(SMILES, token) for token in ordinary):
        return _smiles(tokens), "the tokenizer splits SMILES into symbols: every entry of vocab.txt is one"
    return None


def _lowers(ordinary: Collection[str], config: Path | None) -> bool:
    """Whether texts are put into lower case: what the config says, else whether the vocabulary has no capitals."""
    said = {} if config is None else json.loads(config.read_text(encoding="utf-8"))
    return bool(said.get("do_lower_case", all(token == token.lower() for token in ordinary)))


def _word_pieces(tokens: Sequence[str], lowers: bool) -> PreTrainedTokenizerBase:
    """BERT's tokenizer."""
    ids = {token: number for number, token in enumerate(tokens)}
    special: dict[str, Any] = dict(SPECIAL)
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(vocab=ids, do_lower_case=lowers, **special)
    return tokenizer


def _smiles(tokens: Sequence[str]) -> PreTrainedTokenizerBase:
    """Every symbol a token; what the vocabulary does not have, and what is no symbol, is unknown."""
    ids = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    inner.pre_tokenizer = InTurn([WhitespaceSplit(), Split(Regex(SMILES), "isolated")])
    inner.decoder = Fuse()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=inner, model_input_names=INPUTS, **SPECIAL
    )
    return tokenizer
