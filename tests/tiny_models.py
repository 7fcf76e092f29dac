"""One tiny model and tokenizer per family, built in memory in a fraction of a second, the same on every call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

NUM_BLOCKS = 3
HIDDEN = 16
VOCABULARY_SIZE = 128
MAX_LENGTH = 64
TEXT = (
    "the a an and or not is was very quite film movie book song food place story actor plot music good great "
    "excellent wonderful nice lovely happy bad awful terrible boring poor dull sad i you he she we they it this that "
    "liked hated loved saw read heard in on at with for of to red green blue one two three cat dog bird . , ! ?"
)
WORDS = TEXT.split()


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer, in the order of their ids, and what it puts around texts.

    Args:
        roles: Token -> the tokenizer attributes that hold it.
        single: Template of one text.
        pair: Template of two texts.
    """

    roles: Mapping[str, tuple[str, ...]]
    single: str = "$A"
    pair: str = "$A $B"


@dataclass(frozen=True)
class TinyFamily:
    """How to build the tiny model of one family.

    Args:
        config_class: Name of the config class in transformers.
        sizes: Config attributes that make it small.
        dropouts: Config attributes that are dropout rates.
        special_tokens: Those of its tokenizers.
        token_types: Whether the tokenizer returns token types.
    """

    config_class: str
    sizes: Mapping[str, Any]
    dropouts: tuple[str, ...]
    special_tokens: SpecialTokens
    token_types: bool = False

    def config(self, dropout: float = 0.1, **overrides: Any) -> PretrainedConfig:
        """The tiny config, with one rate for every dropout."""
        settings = {"vocab_size": VOCABULARY_SIZE, **self.sizes, **dict.fromkeys(self.dropouts, dropout)}
        config_class: type[PretrainedConfig] = getattr(transformers, self.config_class)
        return config_class(**{**settings, **overrides})


_BERT_TOKENS = SpecialTokens(
    {
        "[PAD]": ("pad_token",),
        "[UNK]": ("unk_token",),
        "[CLS]": ("cls_token",),
        "[SEP]": ("sep_token",),
        "[MASK]": ("mask_token",),
    },
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
)
_ROBERTA_TOKENS = SpecialTokens(
    {
        "<s>": ("bos_token", "cls_token"),
        "<pad>": ("pad_token",),
        "</s>": ("eos_token", "sep_token"),
        "<unk>": ("unk_token",),
        "<mask>": ("mask_token",),
    },
    single="<s> $A </s>",
    pair="<s> $A </s> </s> $B </s>",
)
_T5_TOKENS = SpecialTokens(
    {
        "<pad>": ("pad_token",),
        "</s>": ("eos_token",),
        "<unk>": ("unk_token",),
        **{f"<extra_id_{number}>": () for number in range(9)},
    },
    single="$A </s>",
    pair="$A </s> $B </s>",
)
_GPT2_TOKENS = SpecialTokens({"<|endoftext|>": ("bos_token", "eos_token", "unk_token")})
_LLAMA_TOKENS = SpecialTokens(
    {"<unk>": ("unk_token",), "<s>": ("bos_token",), "</s>": ("eos_token",)},
    single="<s> $A",
    pair="<s> $A $B",
)

_ENCODER = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
}
_BERT_IDS = {"pad_token_id": 0}
_ROBERTA_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_ROBERTA = {**_ENCODER, **_ROBERTA_IDS, "max_position_embeddings": MAX_LENGTH + 2}
_BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")

FAMILIES: dict[str, TinyFamily] = {
    "bert": TinyFamily("BertConfig", {**_ENCODER, **_BERT_IDS}, _BERT_DROPOUTS, _BERT_TOKENS, token_types=True),
    "roberta": TinyFamily("RobertaConfig", {**_ROBERTA, "type_vocab_size": 1}, _BERT_DROPOUTS, _ROBERTA_TOKENS),
    "xlm-roberta": TinyFamily("XLMRobertaConfig", {**_ROBERTA, "type_vocab_size": 1}, _BERT_DROPOUTS, _ROBERTA_TOKENS),
    "distilbert": TinyFamily(
        "DistilBertConfig",
        {
            **_BERT_IDS,
            "dim": HIDDEN,
            "hidden_dim": 2 * HIDDEN,
            "n_layers": NUM_BLOCKS,
            "n_heads": 2,
            "max_position_embeddings": MAX_LENGTH,
        },
        ("dropout", "attention_dropout", "seq_classif_dropout"),
        _BERT_TOKENS,
    ),
    "albert": TinyFamily(
        "AlbertConfig",
        {**_ENCODER, **_BERT_IDS, "embedding_size": HIDDEN // 2, "bos_token_id": 2, "eos_token_id": 3},
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"),
        _BERT_TOKENS,
        token_types=True,
    ),
    "electra": TinyFamily(
        "ElectraConfig",
        {**_ENCODER, **_BERT_IDS, "embedding_size": HIDDEN // 2},
        (*_BERT_DROPOUTS, "summary_last_dropout"),
        _BERT_TOKENS,
        token_types=True,
    ),
    "mpnet": TinyFamily("MPNetConfig", _ROBERTA, _BERT_DROPOUTS[:2], _ROBERTA_TOKENS),
    "deberta-v2": TinyFamily(
        "DebertaV2Config",
        {
            **_ENCODER,
            **_BERT_IDS,
            # As in the published v3 checkpoints.
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout"),
        _BERT_TOKENS,
        token_types=True,
    ),
    "modernbert": TinyFamily(
        "ModernBertConfig",
        {**_ENCODER, **_BERT_IDS, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
        ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
        _BERT_TOKENS,
    ),
    "t5": TinyFamily(
        "T5Config",
        {
            "d_model": HIDDEN,
            "d_ff": 2 * HIDDEN,
            "d_kv": HIDDEN // 2,
            "num_layers": NUM_BLOCKS,
            "num_decoder_layers": NUM_BLOCKS,
            "num_heads": 2,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
        ("dropout_rate", "classifier_dropout"),
        _T5_TOKENS,
    ),
    "bart": TinyFamily(
        "BartConfig",
        {
            **_ROBERTA_IDS,
            "d_model": HIDDEN,
            "encoder_layers": NUM_BLOCKS,
            "decoder_layers": NUM_BLOCKS,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * HIDDEN,
            "decoder_ffn_dim": 2 * HIDDEN,
            "max_position_embeddings": MAX_LENGTH,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        },
        ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"),
        _ROBERTA_TOKENS,
    ),
    "gpt2": TinyFamily(
        "GPT2Config",
        {
            "n_embd": HIDDEN,
            "n_layer": NUM_BLOCKS,
            "n_head": 2,
            "n_positions": MAX_LENGTH,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        _GPT2_TOKENS,
    ),
    "llama": TinyFamily(
        "LlamaConfig",
        {**_ENCODER, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2},
        ("attention_dropout",),
        _LLAMA_TOKENS,
    ),
}


LANGUAGE_MODELS: dict[str, tuple[str, ...]] = {
    "AutoModelForSeq2SeqLM": ("t5", "bart"),
    "AutoModelForCausalLM": ("gpt2", "llama"),
    "AutoModelForMaskedLM": (
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "albert",
        "electra",
        "mpnet",
        "deberta-v2",
        "modernbert",
    ),
}
"""Auto class -> the families that have a pretrained head of it."""


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words with the special tokens and templates of the family."""
    special = FAMILIES[family].special_tokens
    ids = {token: index for index, token in enumerate([*special.roles, *WORDS])}
    attributes = {role: token for token, roles in special.roles.items() for role in roles}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=attributes["unk_token"]))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=special.single,
        pair=special.pair,
        special_tokens=[(token, ids[token]) for token in special.roles],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=inputs if FAMILIES[family].token_types else [inputs[0], inputs[2]],
        **attributes,
    )


def tiny_model(auto_class: Any, family: str, dropout: float = 0.1, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A randomly initialised model of an Auto class or a model class, in eval mode; global randomness is left alone."""
    config = FAMILIES[family].config(dropout, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = (
            auto_class.from_config(config) if hasattr(auto_class, "from_config") else auto_class(config)
        )
        for parameter in model.parameters():
            # Wider than transformers starts: tiny models would otherwise give almost the same logits for every text.
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.3)
    model.eval()
    return model


def tiny_classifier(family: str, num_labels: int = 3, dropout: float = 0.1) -> PreTrainedModel:
    """A sequence classifier in eval mode. Decoders know their padding token, as after `load_model`."""
    pad = tiny_tokenizer(family)
    pad_token_id = pad.pad_token_id if pad.pad_token_id is not None else pad.eos_token_id
    return tiny_model(
        AutoModelForSequenceClassification, family, dropout, num_labels=num_labels, pad_token_id=pad_token_id
    )


def write_tiny_checkpoint(
    folder: Path, family: str, dropout: float = 0.1, auto_class: Any = AutoModel, **overrides: Any
) -> Path:
    """Write a pretrained backbone, or a model of another class, and its tokenizer; returns the folder."""
    tiny_model(auto_class, family, dropout, **overrides).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder
