"""What is known about each model family, as data: where its blocks are and what position alone would misplace.

`anatomy.analyse` finds the blocks by structure. This table holds what it cannot see there: which config attribute
counts the blocks, the role of the modules registered after them, and which token the stock classification head reads.
A family that is not in the table is refused: a wrong depth trains a wrong model without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["embeddings", "first_block", "final_norm", "pooler", "head"]
HeadToken = Literal["first", "last"]

POOLING_BLOCK_FLAG = "hftransfer_pooling_block"
"""Config attribute that marks the last block as a pooling block (`pooling.py`); stock transformers ignores it."""


@dataclass(frozen=True)
class Stack:
    """One sequence of blocks.

    Args:
        count: Config attribute that holds the number of blocks.
        container: Child of the backbone that holds the stack; "" when the backbone itself does.
        encoder: Whether the blocks are an encoder's.
    """

    count: str
    container: str = ""
    encoder: bool = True


@dataclass(frozen=True)
class Projections:
    """Paths inside one post-norm encoder block of what the pooling block does not leave at zero.

    Args:
        value: The value map of the attention.
        output: The output map of the attention.
        norms: The layer norms.
    """

    value: str
    output: str
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """What is declared about one `config.model_type`.

    Args:
        stacks: The stacks in depth order. The first must exist; a later one may be absent (T5EncoderModel).
        roles: Path inside the backbone -> role, for modules registered after the blocks. Modules registered before the
            blocks are embeddings unless listed.
        repeats: Config attribute with the number of block applications where blocks are shared (ALBERT).
        head_token: The token that the stock sequence classification head reads.
        pretrained_head: Modules outside the backbone that masked language models pretrain and other heads use again.
        offset_positions: Whether position ids start at `pad_token_id + 1`.
        absolute_positions: Whether `max_position_embeddings` limits the input.
        pooling_block: How to write a mean-pooling block, for post-norm encoders.
        shares_position_bias: Whether the first block makes the position bias and every block hands it on (T5).
        token_wise: Path inside a block of the module behind the attention, from which on every token is treated alone:
            it is given the attention's output and what the residual adds, and nothing else carries tokens on.
    """

    stacks: tuple[Stack, ...] = (Stack("num_hidden_layers"),)
    roles: Mapping[str, Role] = field(default_factory=dict)
    repeats: str | None = None
    head_token: HeadToken = "first"
    pretrained_head: tuple[str, ...] = ()
    offset_positions: bool = False
    absolute_positions: bool = True
    pooling_block: Projections | None = None
    shares_position_bias: bool = False
    token_wise: str | None = None


_BERT_BLOCK = Projections(
    value="attention.self.value",
    output="attention.output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
_DISTILBERT_BLOCK = Projections(
    value="attention.v_lin",
    output="attention.out_lin",
    norms=("sa_layer_norm", "output_layer_norm"),
)

_BERT_TOKEN_WISE = "attention.output"

_ROBERTA = Family(
    roles={"pooler": "pooler"}, offset_positions=True, pooling_block=_BERT_BLOCK, token_wise=_BERT_TOKEN_WISE
)
_LLAMA = Family(
    stacks=(Stack("num_hidden_layers", encoder=False),),
    roles={"norm": "final_norm", "rotary_emb": "embeddings"},
    head_token="last",
)

FAMILIES: Mapping[str, Family] = {
    "bert": Family(roles={"pooler": "pooler"}, pooling_block=_BERT_BLOCK, token_wise=_BERT_TOKEN_WISE),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(pooling_block=_BERT_BLOCK, token_wise=_BERT_TOKEN_WISE),
    "distilbert": Family(pooling_block=_DISTILBERT_BLOCK),
    # One group of weights is applied several times: the group is the block, since its weights learn together.
    "albert": Family(
        stacks=(Stack("num_hidden_groups"),),
        roles={"pooler": "pooler", "pooler_activation": "pooler"},
        repeats="num_hidden_layers",
    ),
    # Every block reads the position bias, so it belongs below them all.
    "mpnet": Family(
        roles={"pooler": "pooler", "encoder.relative_attention_bias": "embeddings"},
        offset_positions=True,
    ),
    # The encoder's LayerNorm is applied to the relative embeddings; the convolution to the output of the first block.
    "deberta-v2": Family(
        roles={
            "encoder.rel_embeddings": "embeddings",
            "encoder.LayerNorm": "embeddings",
            "encoder.conv": "first_block",
        },
        token_wise=_BERT_TOKEN_WISE,
    ),
    "modernbert": Family(
        roles={"final_norm": "final_norm", "rotary_emb": "embeddings"},
        pretrained_head=("head",),
    ),
    # One dropout module serves the embeddings and the output of a stack: it rests as soon as the embeddings do.
    "t5": Family(
        stacks=(Stack("num_layers", "encoder"), Stack("num_decoder_layers", "decoder", encoder=False)),
        roles={
            "encoder.final_layer_norm": "final_norm",
            "encoder.dropout": "embeddings",
            "decoder.final_layer_norm": "final_norm",
            "decoder.dropout": "embeddings",
            "lm_head": "head",
            "qa_outputs": "head",
        },
        head_token="last",
        absolute_positions=False,
        shares_position_bias=True,
    ),
    "bart": Family(
        stacks=(Stack("encoder_layers", "encoder"), Stack("decoder_layers", "decoder", encoder=False)),
        roles={"encoder.layernorm_embedding": "embeddings", "decoder.layernorm_embedding": "embeddings"},
        head_token="last",
    ),
    "gpt2": Family(
        stacks=(Stack("num_hidden_layers", encoder=False),),
        roles={"ln_f": "final_norm"},
        head_token="last",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}
