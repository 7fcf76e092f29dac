"""`hftransfer recipes`: every recipe with what it does and its configs."""

from __future__ import annotations

import pytest
import yaml

from hftransfer.cli.main import main
from hftransfer.cli.recipes import config_files, recipe_module, recipe_names
from hftransfer.errors import RecipeError
from hftransfer.recipe import Recipe


def test_the_list_names_recipes_and_configs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recipes"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "text_classification" in recipe_names()
    for name in recipe_names():
        assert name in printed
        for config in config_files(name):
            assert f"--config {config}" in printed


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_main_a_description_and_valid_configs(name: str) -> None:
    module = recipe_module(name)
    assert callable(module.main)
    assert module.__doc__
    assert config_files(name)
    for config in config_files(name):
        Recipe(**yaml.safe_load(config.read_text(encoding="utf-8")))


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean text_classification"):
        recipe_module("text_clasification")
    with pytest.raises(RecipeError, match=r"there are .*text_classification"):
        recipe_module("xyz")
