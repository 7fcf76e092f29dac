"""Anatomy against every family: hand-written depths, and what a boundary promises about a model that is training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hftransfer.models.anatomy import Anatomy, analyse
from tests.tiny_models import FAMILIES, tiny_classifier, tiny_tokenizer

TEXTS = ["the film was very good", "a bad book"]

# Depth of every parameter of the sequence classifier, by the longest prefix of its name that is listed.
_ROBERTA = {
    "roberta.embeddings": 0,
    "roberta.encoder.layer.0": 1,
    "roberta.encoder.layer.1": 2,
    "roberta.encoder.layer.2": 3,
    "classifier": 4,
}
DEPTHS = {
    "bert": {
        "bert.embeddings": 0,
        "bert.encoder.layer.0": 1,
        "bert.encoder.layer.1": 2,
        "bert.encoder.layer.2": 3,
        "bert.pooler": 4,
        "classifier": 4,
    },
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": {
        "distilbert.embeddings": 0,
        "distilbert.transformer.layer.0": 1,
        "distilbert.transformer.layer.1": 2,
        "distilbert.transformer.layer.2": 3,
        "pre_classifier": 4,
        "classifier": 4,
    },
    "albert": {
        "albert.embeddings": 0,
        "albert.encoder.embedding_hidden_mapping_in": 0,
        "albert.encoder.albert_layer_groups.0": 1,
        "albert.pooler": 2,
        "classifier": 2,
    },
    "electra": {
        "electra.embeddings": 0,
        "electra.embeddings_project": 0,
        "electra.encoder.layer.0": 1,
        "electra.encoder.layer.1": 2,
        "electra.encoder.layer.2": 3,
        "classifier": 4,
    },
    "mpnet": {
        "mpnet.embeddings": 0,
        "mpnet.encoder.relative_attention_bias": 0,
        "mpnet.encoder.layer.0": 1,
        "mpnet.encoder.layer.1": 2,
        "mpnet.encoder.layer.2": 3,
        "classifier": 4,
    },
    "deberta-v2": {
        "deberta.embeddings": 0,
        "deberta.encoder.rel_embeddings": 0,
        "deberta.encoder.LayerNorm": 0,
        "deberta.encoder.conv": 1,
        "deberta.encoder.layer.0": 1,
        "deberta.encoder.layer.1": 2,
        "deberta.encoder.layer.2": 3,
        "pooler": 4,
        "classifier": 4,
    },
    "modernbert": {
        "model.embeddings": 0,
        "model.layers.0": 1,
        "model.layers.1": 2,
        "model.layers.2": 3,
        "model.final_norm": 3,
        "head": 4,
        "classifier": 4,
    },
    "t5": {
        "transformer.shared": 0,
        "transformer.encoder.block.0": 1,
        "transformer.encoder.block.1": 2,
        "transformer.encoder.block.2": 3,
        "transformer.encoder.final_layer_norm": 3,
        "transformer.decoder.block.0": 4,
        "transformer.decoder.block.1": 5,
        "transformer.decoder.block.2": 6,
        "transformer.decoder.final_layer_norm": 6,
        "classification_head": 7,
    },
    "bart": {
        "model.shared": 0,
        "model.encoder.embed_positions": 0,
        "model.encoder.layernorm_embedding": 0,
        "model.encoder.layers.0": 1,
        "model.encoder.layers.1": 2,
        "model.encoder.layers.2": 3,
        "model.decoder.embed_positions": 0,
        "model.decoder.layernorm_embedding": 0,
        "model.decoder.layers.0": 4,
        "model.decoder.layers.1": 5,
        "model.decoder.layers.2": 6,
        "classification_head": 7,
    },
    "gpt2": {
        "transformer.wte": 0,
        "transformer.wpe": 0,
        "transformer.h.0": 1,
        "transformer.h.1": 2,
        "transformer.h.2": 3,
        "transformer.ln_f": 3,
        "score": 4,
    },
    "llama": {
        "model.embed_tokens": 0,
        "model.layers.0": 1,
        "model.layers.1": 2,
        "model.layers.2": 3,
        "model.norm": 3,
        "score": 4,
    },
}
ENCODER_BLOCKS = {"albert": 1, "gpt2": 0, "llama": 0}


def expected_depth(name: str, depths: dict[str, int]) -> int:
    """The depth of the longest listed prefix, ends of names respected."""
    return depths[max((prefix for prefix in depths if f"{name}.".startswith(f"{prefix}.")), key=len)]


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_of_every_parameter(family: str) -> None:
    model = tiny_classifier(family)
    anatomy = analyse(model)
    names = [name for name, _ in model.named_parameters()]
    assert dict(anatomy.parameter_depth) == {name: expected_depth(name, DEPTHS[family]) for name in names}
    assert anatomy.num_blocks == max(DEPTHS[family].values()) - 1
    assert anatomy.head_depth == anatomy.num_blocks + 1
    assert anatomy.num_encoder_blocks == ENCODER_BLOCKS.get(family, 3)
    assert anatomy.shared_repeats == (3 if family == "albert" else 1)
    assert set(anatomy.module_depth) == {path for path, _ in model.named_modules()}
    assert all(anatomy.module_depth[path] == depth + 1 for depth, path in enumerate(anatomy.blocks))


def rest(model: PreTrainedModel, anatomy: Anatomy, boundary: int) -> None:
    """Freeze below the boundary, and put in eval mode what lies there."""
    for path, module in model.named_modules():
        module.training = not (anatomy.module_depth[path] < boundary)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (anatomy.parameter_depth[name] < boundary))


def boundary_states(
    model: PreTrainedModel, anatomy: Anatomy, boundary: int, inputs: dict[str, torch.Tensor], seed: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the resting blocks and norms give and what the first learning block gets, and the logits."""
    states: dict[str, torch.Tensor] = {}

    def keep_output(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states[f"out of {path}"] = (output if torch.is_tensor(output) else output[0]).detach().clone()

        return hook

    def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        # A shared block runs several times, and from the second time on gets its own output.
        hidden = args[0] if args else kwargs["hidden_states"]
        states.setdefault("into the boundary", hidden.detach().clone())

    resting = [path for path in (*anatomy.blocks, *anatomy.final_norm) if (anatomy.module_depth[path] < boundary)]
    handles = [model.get_submodule(path).register_forward_hook(keep_output(path)) for path in resting]
    if boundary <= anatomy.num_blocks:
        first = model.get_submodule(anatomy.blocks[boundary - 1])
        handles.append(first.register_forward_pre_hook(keep_input, with_kwargs=True))
    torch.manual_seed(seed)
    logits = model(**inputs).logits
    for handle in handles:
        handle.remove()
    return states, logits


@pytest.mark.parametrize("where", ["first", "middle", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_below_the_boundary_is_fixed_and_the_rest_learns(family: str, where: str) -> None:
    model = tiny_classifier(family, dropout=0.5)
    anatomy = analyse(model)
    boundary = {"first": 1, "middle": anatomy.num_blocks // 2 + 1, "head": anatomy.head_depth}[where]
    tokenizer = tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    rest(model, anatomy, boundary)

    before, logits = boundary_states(model, anatomy, boundary, inputs, seed=1)
    logits.square().sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, depth in anatomy.parameter_depth.items() if depth >= boundary}

    with torch.no_grad():
        for name in with_gradient:
            model.get_parameter(name).add_(0.1)
    after, other_logits = boundary_states(model, anatomy, boundary, inputs, seed=2)
    assert before
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not torch.equal(logits, other_logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_in_train_mode_is_not_fixed(family: str) -> None:
    """The contract above could not fail if the tiny models had no dropout."""
    model = tiny_classifier(family, dropout=0.5)
    anatomy = analyse(model)
    tokenizer = tiny_tokenizer(family)
    inputs = dict(tokenizer(TEXTS[:1], return_tensors="pt"))
    model.train()
    before, _ = boundary_states(model, anatomy, anatomy.head_depth, inputs, seed=1)
    after, _ = boundary_states(model, anatomy, anatomy.head_depth, inputs, seed=2)
    last = f"out of {anatomy.blocks[-1]}"
    assert not torch.equal(before[last], after[last])
