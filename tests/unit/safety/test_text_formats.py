"""YAML within limits: no depth, no aliases, no tags, and no time lost on finding that out."""

import time

import pytest
import yaml

from hftransfer.safety.text_formats import MAX_YAML_DEPTH, YAML_ERRORS, RecipeLoader

DEEP = {
    "open lists": "[" * 20_000,
    "open mappings": "{" * 20_000,
    "closed lists": "[" * 20_000 + "]" * 20_000,
    "open lists under a key": "checkpoint: " + "[" * 20_000,
    "lists line by line": "[\n" * 20_000,
    "items": "- " * 20_000,
    "keys of keys": "? " * 20_000,
    "mappings by indentation": "\n".join(" " * level + "a:" for level in range(900)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_depth_is_refused_at_once(kind: str) -> None:
    started = time.process_time()
    with pytest.raises(yaml.YAMLError, match=f"nested more than {MAX_YAML_DEPTH} levels deep"):
        yaml.load(DEEP[kind], Loader=RecipeLoader)
    assert time.process_time() - started < 1.0


def test_what_a_recipe_needs_of_depth_is_there() -> None:
    deepest = MAX_YAML_DEPTH - 1
    for text in ("[" * deepest + "1" + "]" * deepest, "{a: " * deepest + "1" + "}" * deepest):
        assert yaml.load(text, Loader=RecipeLoader) == yaml.safe_load(text)
    assert yaml.load("a: [[1, {b: 2}], [3]]\nc: {d: {e: f}}\n", Loader=RecipeLoader)["a"] == [[1, {"b": 2}], [3]]


def test_siblings_are_not_depth() -> None:
    text = "".join(f"k{number}: {{a: [1, 2], b: {{}}}}\n" for number in range(200))
    assert yaml.load(text, Loader=RecipeLoader) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["a: &a [x]\nb: *a\n", "!!python/object/apply:os.getcwd []", "a: 1\na: 2\n", "1: 2\n"])
def test_what_is_not_plain_is_refused(text: str) -> None:
    with pytest.raises(YAML_ERRORS):
        yaml.load(text, Loader=RecipeLoader)
