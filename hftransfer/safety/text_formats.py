"""YAML and JSON from files that others wrote, within limits: no tags, no aliases, no bombs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from hftransfer.errors import CheckpointError

# A recipe is a page; a file beyond this is something else.
MAX_YAML_BYTES = 1_000_000
# PyYAML raises these, besides its own, for explicit tags on values that do not fit and for very deep nesting.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
# A recipe has three levels; PyYAML's time grows with the square of the depth.
MAX_YAML_DEPTH = 20
# Enough for the vocabularies of the largest published tokenizers, several times over.
MAX_JSON_BYTES = 256_000_000
# More digits than any size, seed or id has; Python would take quadratic time over millions of them.
MAX_DIGITS = 40


TOO_DEEP = f"nested more than {MAX_YAML_DEPTH} levels deep"


class RecipeLoader(yaml.SafeLoader):
    """Plain YAML alone: settings are named by text, once; aliases, which may form circles, and depth are refused."""

    depth = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """As in PyYAML, which looks ahead for a key; not into any depth."""
        self.flow_level: int
        if self.flow_level >= MAX_YAML_DEPTH:
            raise yaml.scanner.ScannerError(None, None, TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As in PyYAML, but without aliases, and to a bounded depth."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        if self.depth >= MAX_YAML_DEPTH:
            raise yaml.composer.ComposerError(None, None, TOO_DEEP, mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As in PyYAML, but every key is a text and occurs once."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a setting's name is not a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Args:
        path: The file.
        max_bytes: Refuse a larger one.

    Raises:
        CheckpointError: It is too large, nested too deeply, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise CheckpointError(f"is larger than {max_bytes:,} bytes", where=str(path))
        found = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer)
    except RecursionError:
        raise CheckpointError("is nested too deeply", where=str(path)) from None
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except ValueError as error:
        raise CheckpointError(f"cannot be loaded: no JSON ({error})", where=str(path)) from error
    if not isinstance(found, dict):
        raise CheckpointError("is not a JSON object", where=str(path))
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
