"""LoRA and IA3: which layers get adapters, the options that reach PEFT, and what is refused."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from hftransfer.errors import StrategyError
from hftransfer.models import families
from hftransfer.models.anatomy import analyse
from hftransfer.strategies import adapters, make_strategy
from tests.tiny_models import FAMILIES, NUM_BLOCKS, tiny_classifier, tiny_model


def adapted(model: Any) -> set[str]:
    """Paths of the layers with adapters, as in the plain model."""
    inserted = (name for name, _ in model.named_modules() if name.endswith((".lora_A", ".ia3_l")))
    return {name.removeprefix("base_model.model.").rpartition(".")[0] for name in inserted}


def lora_layers(model: Any) -> list[Any]:
    return [module for _, module in model.named_modules() if hasattr(module, "lora_A")]


BERT_ENDINGS = {
    "query_value": {"attention.self.query", "attention.self.value"},
    "attention": {
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    },
    "all_linear": {
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    },
}


@pytest.mark.parametrize("top_blocks", [None, 1, NUM_BLOCKS])
@pytest.mark.parametrize("targets", BERT_ENDINGS)
def test_targets_in_the_chosen_blocks(targets: str, top_blocks: int | None) -> None:
    model = make_strategy("lora", r=2, targets=targets, top_blocks=top_blocks).apply(tiny_classifier("bert"))
    chosen = range(NUM_BLOCKS - (top_blocks or NUM_BLOCKS), NUM_BLOCKS)
    assert adapted(model) == {
        f"bert.encoder.layer.{index}.{ending}" for index in chosen for ending in BERT_ENDINGS[targets]
    }


def test_targets_as_a_list_of_endings_in_whole_names() -> None:
    model = make_strategy("lora", targets=["key", "intermediate.dense"]).apply(tiny_classifier("bert"))
    endings = {path.split(".", 4)[4] for path in adapted(model)}
    assert endings == {"attention.self.key", "intermediate.dense"}
    with pytest.raises(
        StrategyError, match=r"^strategy\.targets: no linear layer's name ends in 'ey'; there are .*key"
    ):
        make_strategy("lora", targets=["key", "ey"]).apply(tiny_classifier("bert"))
    with pytest.raises(StrategyError, match="empty"):
        make_strategy("lora", targets=[]).apply(tiny_classifier("bert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_choice_of_targets_stays_inside_the_blocks(family: str) -> None:
    """A head or an embedding with an adapter would be neither in its optimizer group nor in the merged weights."""
    counts = []
    for targets in ("query_value", "attention", "all_linear"):
        plain = tiny_classifier(family)
        anatomy = analyse(plain)
        paths = adapted(make_strategy("lora", r=1, targets=targets).apply(plain, anatomy))
        assert paths
        for block in anatomy.blocks:
            assert any(path.startswith(f"{block}.") for path in paths), f"{targets}: nothing in {block}"
        assert all(1 <= anatomy.module_depth[path] < anatomy.head_depth for path in paths)
        counts.append(len(paths))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_rescales_keys_values_and_the_second_feed_forward_layer(family: str) -> None:
    plain = tiny_classifier(family)
    anatomy = analyse(plain)
    model: Any = make_strategy("ia3").apply(plain, anatomy)
    config = model.peft_config["default"]
    feed_forward = set(config.feedforward_modules)
    assert adapted(model) == set(config.target_modules)
    for path in adapted(model):
        layer = model.base_model.model.get_submodule(path)
        assert layer.is_feedforward == (path in feed_forward)
        assert not re.search(r"attention\.output|\.attn\.o$|out_proj|o_proj|out_lin|\.o$|c_attn\.c_proj", path), path
    for block in anatomy.blocks:
        inside = {path for path in adapted(model) if path.startswith(f"{block}.")}
        assert len(inside & feed_forward) == 1, f"one feed-forward output in {block}"
        assert inside - feed_forward, f"keys and values in {block}"


def test_every_family_has_targets() -> None:
    assert set(adapters.ADAPTER_TARGETS) == set(families.FAMILIES)


@pytest.mark.parametrize(("name", "settings"), [("ia3", {}), ("lora", {"targets": "attention"})])
def test_undeclared_family_is_refused(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(adapters.ADAPTER_TARGETS, "bert")
    with pytest.raises(StrategyError, match=r"^strategy\..*: no adapter targets are declared for 'bert' models; .*$"):
        make_strategy(name, **settings).apply(tiny_classifier("bert"))
    assert adapted(make_strategy("lora").apply(tiny_classifier("bert"))), "all_linear needs no declaration"


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"r": 4}, 2.0),
        ({"r": 4, "alpha": 4}, 1.0),
        ({"r": 4, "alpha": 4, "variant": "rslora"}, 4 / math.sqrt(4)),
        ({"r": 4, "variant": "rslora"}, 8 / math.sqrt(4)),
    ],
)
def test_rank_and_scale(settings: dict[str, Any], scaling: float) -> None:
    layers = lora_layers(make_strategy("lora", **settings).apply(tiny_classifier("bert")))
    assert layers
    for layer in layers:
        assert layer.lora_A["default"].weight.shape[0] == layer.lora_B["default"].weight.shape[1] == 4
        assert layer.scaling["default"] == pytest.approx(scaling)


def test_dropout_and_dora() -> None:
    layers = lora_layers(make_strategy("lora", dropout=0.25, variant="dora").apply(tiny_classifier("bert")))
    assert {layer.lora_dropout["default"].p for layer in layers} == {0.25}
    assert all("default" in layer.lora_magnitude_vector for layer in layers)
    plain = lora_layers(make_strategy("lora").apply(tiny_classifier("bert")))
    assert not any(len(layer.lora_magnitude_vector) for layer in plain)


@pytest.mark.parametrize("settings", [{}, {"variant": "dora"}])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_adapters_start_without_effect(family: str, settings: dict[str, Any]) -> None:
    plain = tiny_classifier(family)
    batch = {"input_ids": torch.tensor([[9, 10, 11, 1]])}
    with torch.no_grad():
        expected = plain(**batch).logits
        model = make_strategy("lora", **settings).apply(plain).eval()
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_gpt2_layers_are_declared_as_transposed(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fan_in_fan_out")
        for family in ("gpt2", "bert"):
            model: Any = make_strategy(name).apply(tiny_classifier(family))
            assert model.peft_config["default"].fan_in_fan_out == (family == "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_head_is_trained_and_saved(family: str) -> None:
    plain = tiny_classifier(family)
    expected = set(analyse(plain).head_parameters)
    model = make_strategy("lora", r=1).apply(plain)
    copies = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        for name, parameter in model.named_parameters()
        if ".modules_to_save." in name and parameter.requires_grad
    }
    assert copies == expected


def test_a_head_tied_to_the_embeddings_is_not_copied() -> None:
    model: Any = make_strategy("lora", r=1).apply(tiny_model(GPT2LMHeadModel, "gpt2"))
    assert model.get_base_model().lm_head.weight is model.get_base_model().transformer.wte.weight
    assert not any(".modules_to_save." in name for name, _ in model.named_parameters())
