"""What LoRA and IA3 share: which modules get adapters, and how PEFT is told about the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hftransfer.errors import StrategyError
from hftransfer.models.anatomy import Anatomy


@dataclass(frozen=True)
class AdapterTargets:
    """Endings of the paths of a family's linear layers inside a block, in whole names.

    Attributes:
        query_value: The query and value projections (or the fused projection that holds them).
        attention: All projections of the attention, its output included.
        key_value: The key and value projections, or the fused projection.
        feed_forward_out: The second feed-forward layer, whose input IA3 rescales.
    """

    query_value: tuple[str, ...]
    attention: tuple[str, ...]
    key_value: tuple[str, ...]
    feed_forward_out: tuple[str, ...]


_BERT = AdapterTargets(
    query_value=("query", "value"),
    attention=("query", "key", "value", "attention.output.dense"),
    key_value=("key", "value"),
    feed_forward_out=("output.dense",),
)
_BART = AdapterTargets(
    query_value=("q_proj", "v_proj"),
    attention=("q_proj", "k_proj", "v_proj", "out_proj"),
    key_value=("k_proj", "v_proj"),
    feed_forward_out=("fc2",),
)
_LLAMA = AdapterTargets(
    query_value=("q_proj", "v_proj"),
    attention=("q_proj", "k_proj", "v_proj", "o_proj"),
    key_value=("k_proj", "v_proj"),
    feed_forward_out=("down_proj",),
)

# Declared by model type, since PEFT's own table lacks half of these families.
ADAPTER_TARGETS: dict[str, AdapterTargets] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "albert": AdapterTargets(
        ("query", "value"), ("query", "key", "value", "attention.dense"), ("key", "value"), ("ffn_output",)
    ),
    "distilbert": AdapterTargets(
        ("q_lin", "v_lin"), ("q_lin", "k_lin", "v_lin", "out_lin"), ("k_lin", "v_lin"), ("ffn.lin2",)
    ),
    "mpnet": AdapterTargets(
        ("attn.q", "attn.v"), ("attn.q", "attn.k", "attn.v", "attn.o"), ("attn.k", "attn.v"), ("output.dense",)
    ),
    "deberta-v2": AdapterTargets(
        ("query_proj", "value_proj"),
        ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
        ("key_proj", "value_proj"),
        ("output.dense",),
    ),
    "modernbert": AdapterTargets(("attn.Wqkv",), ("attn.Wqkv", "attn.Wo"), ("attn.Wqkv",), ("mlp.Wo",)),
    "t5": AdapterTargets(("q", "v"), ("q", "k", "v", "o"), ("k", "v"), ("wo",)),
    "bart": _BART,
    "gpt2": AdapterTargets(("attn.c_attn",), ("attn.c_attn", "attn.c_proj"), ("attn.c_attn",), ("mlp.c_proj",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def is_linear(module: nn.Module) -> bool:
    """Whether PEFT can adapt the module: a linear layer, or GPT-2's transposed one."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_layers(model: nn.Module, anatomy: Anatomy, boundary: int) -> list[str]:
    """Paths of the linear layers in the blocks at or above the boundary, in depth order."""
    blocks = tuple(f"{path}." for path in anatomy.blocks[max(boundary, 1) - 1 :])
    return [path for path, module in model.named_modules() if is_linear(module) and path.startswith(blocks)]


def family_targets(model: nn.Module, where: str) -> AdapterTargets:
    """The declared targets of the model's family.

    Raises:
        StrategyError: If the family has none.
    """
    config: Any = model.config
    model_type = config.model_type
    if model_type not in ADAPTER_TARGETS:
        raise StrategyError(
            f"no adapter targets are declared for {model_type!r} models",
            where=where,
            fix="use --strategy.type lora with --strategy.targets all_linear, or list the module name endings",
        )
    return ADAPTER_TARGETS[model_type]


def ending_in(paths: list[str], endings: Sequence[str], where: str) -> list[str]:
    """The paths with one of these endings, compared in whole names as PEFT does: "q" does not match "seq".

    Raises:
        StrategyError: If there are no endings, or one matches nothing.
    """
    if not endings:
        raise StrategyError("the list of module name endings is empty", where=where, fix="name at least one")
    for ending in endings:
        if not any(path.endswith(f".{ending}") for path in paths):
            known = sorted({path.rpartition(".")[2] for path in paths})
            raise StrategyError(
                f"no linear layer's name ends in {ending!r}", where=where, fix=f"there are {', '.join(known)}"
            )
    return [path for path in paths if path.endswith(tuple(f".{ending}" for ending in endings))]


def are_transposed(model: nn.Module, paths: list[str]) -> bool:
    """Whether these layers keep their weight as (inputs, outputs), as GPT-2's do; PEFT wants to be told."""
    return all(type(model.get_submodule(path)).__name__ == "Conv1D" for path in paths)


def head_modules(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Modules that PEFT must train and save beside the adapters; unnamed, the head would be lost.

    A head over the vocabulary comes pretrained and rests with the blocks. A head without parameters of its own is left
    out: a copy would untie it.
    """
    if model.get_output_embeddings() is not None:  # type: ignore[operator]
        return []
    paths = (*anatomy.pooler, *anatomy.head)
    return [path for path in paths if any(name.startswith(f"{path}.") for name in anatomy.head_parameters)]


# PEFT's own Auto classes find the model class by this name. Question answering is left out on purpose: PEFT's wrapper
# for it drops the token types on the way to the model, which would train and predict without them.
PEFT_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def peft_task_type(model: nn.Module) -> str | None:
    """PEFT's name for the task of a transformers class, None where it has none."""
    name = type(model).__name__
    return next((task_type for ending, task_type in PEFT_TASK_TYPES.items() if name.endswith(ending)), None)


def merge(model: nn.Module) -> nn.Module:
    """Fold the adapters of a PEFT model into its weights, with the trained head in its place.

    PEFT's own merging fails on a wrapped head that is not a single layer (a pooler), so the heads are unwrapped first.
    """
    from peft.utils import ModulesToSaveWrapper

    peft_model: Any = model
    inner = peft_model.get_base_model()
    for path, module in list(inner.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(inner.get_submodule(parent), name, module.modules_to_save["default"])
    merged: nn.Module = peft_model.merge_and_unload()
    return merged
