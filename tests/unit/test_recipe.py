"""The recipe's pydantic models: frozen, strict about names, described, and agreeing with the committed JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from hftransfer.cli.recipes import config_files, recipe_names, schema_file
from hftransfer.folded_settings import FOLDED
from hftransfer.recipe import DataSection, Recipe
from hftransfer.strategy_settings import Lora, PlainStrategy, TopLayers
from scripts.write_schema import recipe_schema, schema_text


def models_below(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_below(field.annotation)
    for argument in get_args(annotation):
        yield from models_below(argument)


MODELS = sorted(set(models_below(Recipe)), key=lambda model: model.__name__)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_section_is_frozen_closed_and_described(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    # recipe.yaml leaves out what is None, so None must be what an absent setting means.
    nullable = [field for field in model.model_fields.values() if type(None) in get_args(field.annotation)]
    assert [field for field in nullable if field.default is not None] == []


def test_the_walk_finds_the_sections() -> None:
    assert {Recipe, DataSection, Lora, TopLayers} <= set(MODELS)


def test_nothing_can_be_changed() -> None:
    recipe = Recipe(checkpoint="m")
    for section, name in ((recipe, "seed"), (recipe.data, "text"), (recipe.strategy, "type")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))


@pytest.mark.parametrize(
    "values",
    [
        {"sed": 1},
        {"data": {"txt": "a"}},
        {"strategy": {"type": "lora", "k": 2}},
        {"strategy": {"r": 4}},
        {"strategy": "lorra"},
        {"strategy": ["lora"]},
        {"seed": -1},
        {"optim": {"learning_rate": 0.0}},
        {"optim": {"warmup_ratio": 1.0}},
        {"optim": {"num_train_epochs": 0}},
        {"data": {"validation_fraction": 1.5}},
        {"checkpoint": None},
    ],
)
def test_what_is_no_recipe_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**{"checkpoint": "m", **values})


def test_a_strategy_may_be_its_name() -> None:
    assert Recipe(checkpoint="m", strategy="lora").strategy == Lora()
    assert Recipe(checkpoint="m", strategy={"type": "lora", "r": 4}).strategy == Lora(r=4)
    assert Recipe(checkpoint="m", strategy=Lora(r=4)).strategy == Lora(r=4)
    assert Recipe(checkpoint="m").strategy == Recipe(checkpoint="m", strategy={}).strategy == PlainStrategy()


@pytest.mark.parametrize(
    ("given", "kept", "examples"),
    [
        (True, True, 50_000),
        (False, False, 50_000),
        ("true", True, 50_000),
        ("off", False, 50_000),
        (1, 1, 1),
        ("1", 1, 1),
        (20_000, 20_000, 20_000),
        ("20000", 20_000, 20_000),
    ],
)
def test_streaming_is_a_switch_or_a_number(given: Any, kept: bool | int, examples: int) -> None:
    data = DataSection(streaming=given)
    assert (data.streaming, type(data.streaming), data.chunk_examples) == (kept, type(kept), examples)
    # As recipe.yaml has it.
    assert DataSection(**data.model_dump(mode="json")) == data


@pytest.mark.parametrize("given", [0, -5, "0", "maybe", "", 2.5, None, [1], "9" * 5000, "1e3"])
def test_streaming_is_nothing_else(given: Any) -> None:
    with pytest.raises(ValidationError, match="should be true, false or a number from 1 on"):
        DataSection(streaming=given)


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        ("train,validation,test", {"train": "train", "validation": "validation", "test": "test"}),
        ("a", {"train": "a"}),
        (" a , b ", {"train": "a", "validation": "b"}),
        ("train,,validation", {"train": "train", "test": "validation"}),
    ],
)
def test_splits_are_named_in_order(given: str, roles: dict[str, str]) -> None:
    assert DataSection(splits=given).split_names == roles


@pytest.mark.parametrize(
    ("given", "said"), [("", "one to three"), (",b", "one to three"), ("a,b,c,d", "one to three"), ("a,b,b", "twice")]
)
def test_splits_that_are_none_are_refused(given: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataSection(splits=given)


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_setting_says_what_it_became(name: str) -> None:
    section, _, leaf = name.partition(".")
    new_fields = set(re.findall(r"[a-z]+\.[a-z_]+", FOLDED[name]))
    assert new_fields, "the new form names a field"
    fields = Recipe.model_json_schema()
    for field in new_fields:
        part, _, new = field.partition(".")
        model = {"strategy": "Lora", "task": "TextClassification"}.get(part, f"{part.capitalize()}Section")
        definitions = fields["$defs"][model]
        assert new in definitions["properties"]
        assert leaf not in definitions["properties"]
    kind = {"strategy": {"type": "lora"}}.get(section, {})
    with pytest.raises(ValidationError, match=f"{name} is part of another setting now; "):
        Recipe(**{"checkpoint": "m", section: {**kind, leaf: 1}})


def test_every_strategy_of_the_union_has_its_name() -> None:
    mapping = Recipe.model_json_schema()["properties"]["strategy"]["discriminator"]["mapping"]
    assert len(mapping) == 8
    for name in mapping:
        assert Recipe(checkpoint="m", strategy=name).strategy.type == name


def test_the_committed_schema_is_up_to_date() -> None:
    assert schema_file().read_text(encoding="utf-8") == schema_text(), "run scripts/write_schema.py"


def test_the_schema_lets_a_strategy_be_its_name_and_describes_settings() -> None:
    schema = recipe_schema()
    names, sections = schema["properties"]["strategy"]["anyOf"]
    assert "lora" in names["enum"]
    assert {"$ref": "#/$defs/Lora"} in sections["oneOf"]
    assert schema["required"] == ["checkpoint"]
    assert schema["additionalProperties"] is False
    for reference in sections["oneOf"]:
        definition = schema["$defs"][reference["$ref"].rpartition("/")[2]]
        assert all(setting["description"] for setting in definition["properties"].values())


def test_every_config_names_the_schema_by_a_path_that_exists() -> None:
    configs = [config for name in recipe_names() for config in config_files(name)]
    assert configs
    for config in configs:
        first = config.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema=")
        assert (config.parent / first.partition("=")[2]).resolve() == schema_file().resolve()
