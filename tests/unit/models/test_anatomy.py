"""Anatomy of other heads than classification, of odd models, and the refusal of what is not understood."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from hftransfer.errors import AnatomyError
from hftransfer.models.anatomy import analyse
from tests.tiny_models import tiny_classifier, tiny_model

# Per class: family, blocks of an encoder, blocks in all, and depths that were written by hand.
OTHER_HEADS: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "BertModel": ("bert", 3, 3, {"embeddings.LayerNorm.bias": 0, "encoder.layer.2.output.dense.bias": 3}),
    "BertForTokenClassification": ("bert", 3, 3, {"bert.encoder.layer.0.output.dense.bias": 1, "classifier.bias": 4}),
    "BertForQuestionAnswering": ("bert", 3, 3, {"qa_outputs.weight": 4}),
    "BertForMaskedLM": (
        "bert",
        3,
        3,
        # The decoder of the masked language model is tied to the embeddings.
        {"bert.embeddings.word_embeddings.weight": 0, "cls.predictions.transform.dense.weight": 4},
    ),
    "ModernBertForMaskedLM": ("modernbert", 3, 3, {"model.final_norm.weight": 3, "head.dense.weight": 4}),
    "T5EncoderModel": ("t5", 3, 3, {"shared.weight": 0, "encoder.final_layer_norm.weight": 3}),
    "T5ForTokenClassification": ("t5", 3, 3, {"transformer.shared.weight": 0, "classifier.weight": 4}),
    "T5ForConditionalGeneration": (
        "t5",
        3,
        6,
        {
            "shared.weight": 0,
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 1,
            "encoder.final_layer_norm.weight": 3,
            "decoder.block.0.layer.1.EncDecAttention.q.weight": 4,
            "decoder.final_layer_norm.weight": 6,
        },
    ),
    "BartForConditionalGeneration": (
        "bart",
        3,
        6,
        {
            "model.shared.weight": 0,
            "model.decoder.layernorm_embedding.weight": 0,
            "model.encoder.layers.2.fc1.weight": 3,
            "model.decoder.layers.2.fc1.weight": 6,
        },
    ),
    "GPT2LMHeadModel": ("gpt2", 0, 3, {"transformer.wte.weight": 0, "transformer.ln_f.weight": 3}),
    "LlamaForCausalLM": ("llama", 0, 3, {"model.norm.weight": 3, "lm_head.weight": 4}),
}


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_other_heads(name: str) -> None:
    family, encoder_blocks, blocks, depths = OTHER_HEADS[name]
    model = tiny_model(getattr(transformers, name), family)
    anatomy = analyse(model)
    assert (anatomy.num_encoder_blocks, anatomy.num_blocks) == (encoder_blocks, blocks)
    assert depths.items() <= anatomy.parameter_depth.items()
    assert set(anatomy.parameter_depth) == {parameter for parameter, _ in model.named_parameters()}


def test_depth_of_a_tied_parameter_is_its_lowest() -> None:
    model = tiny_model(transformers.GPT2LMHeadModel, "gpt2")
    anatomy = analyse(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert anatomy.module_depth["lm_head"] == anatomy.head_depth
    assert "lm_head.weight" not in anatomy.parameter_depth
    assert anatomy.head_parameters == ()


def test_convolution_of_deberta_belongs_to_the_first_block() -> None:
    model = tiny_model(transformers.AutoModelForSequenceClassification, "deberta-v2", conv_kernel_size=3)
    assert analyse(model).parameter_depth["deberta.encoder.conv.conv.weight"] == 1


def test_containers_rest_with_the_embeddings_and_the_model_with_the_head() -> None:
    anatomy = analyse(tiny_classifier("bart"))
    for path in ("model", "model.encoder", "model.decoder", "model.decoder.layers"):
        assert anatomy.module_depth[path] == 0
    assert anatomy.module_depth[""] == anatomy.head_depth == 7


def test_boundary_is_the_lowest_depth_that_learns() -> None:
    anatomy = analyse(tiny_classifier("bert"))
    for boundary in range(anatomy.head_depth + 1):
        learning = {depth for depth in anatomy.parameter_depth.values() if depth >= boundary}
        assert learning == set(range(boundary, anatomy.head_depth + 1))
    assert set(anatomy.head_parameters) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


def count_wrong(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 4


def add_module(model: PreTrainedModel) -> None:
    model.bert.extra = nn.Linear(2, 2)


def add_parameter(model: PreTrainedModel) -> None:
    model.bert.encoder.scale = nn.Parameter(torch.ones(1))


def mix_classes(model: PreTrainedModel) -> None:
    model.bert.encoder.layer[1] = nn.Linear(2, 2)


def add_list(model: PreTrainedModel) -> None:
    model.bert.encoder.others = nn.ModuleList([nn.Linear(2, 2)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (count_wrong, r"looked for one ModuleList of 4 blocks \(num_hidden_layers\).*found 3"),
        (mix_classes, "looked for one ModuleList of 3 blocks .*'BertLayer', 'Linear'"),
        (add_list, r"looked for one ModuleList.*bert\.encoder\.others"),
        (add_module, r"cannot tell the depth of bert\.extra"),
        (add_parameter, r"cannot tell the depth of bert\.encoder\.scale"),
    ],
)
def test_unexpected_structure_is_refused(change: Callable[[PreTrainedModel], None], message: str) -> None:
    model = tiny_classifier("bert")
    change(model)
    with pytest.raises(AnatomyError, match=message):
        analyse(model)


def test_undeclared_family_is_refused_and_the_declared_are_named() -> None:
    config = transformers.XLNetConfig(vocab_size=32, d_model=16, n_layer=2, n_head=2, d_inner=32)
    with pytest.raises(AnatomyError, match=r"'xlnet' is not understood.*use one of bert, roberta"):
        analyse(transformers.XLNetForSequenceClassification(config))


def test_peft_model_is_refused_wrapped_or_not() -> None:
    model = tiny_classifier("bert")
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    for changed in (wrapped, wrapped.get_base_model()):
        with pytest.raises(AnatomyError, match=r"PEFT has already changed this model.*before PEFT"):
            analyse(changed)


def test_wrapped_model_is_refused() -> None:
    with pytest.raises(AnatomyError, match="Sequential: not a transformers model"):
        analyse(nn.Sequential(tiny_classifier("bert")))  # type: ignore[arg-type]
