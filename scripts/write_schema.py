"""Write the JSON Schema by which editors complete and check YAML recipes: python scripts/write_schema.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hftransfer.recipe import UNIONS, Recipe

SCHEMA_FILE = Path(__file__).parents[1] / "recipes" / "configs" / "recipe.schema.json"
"""In this tree, which need not be the one that is installed."""


def recipe_schema() -> dict[str, Any]:
    """The schema of what a YAML recipe may say; a strategy or a task may be just its name."""
    schema = Recipe.model_json_schema()
    for union in UNIONS:
        section = schema["properties"][union]
        names = sorted(section["discriminator"]["mapping"])
        section["anyOf"] = [{"enum": names, "type": "string"}, {"oneOf": section.pop("oneOf")}]
        del section["discriminator"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The file's content."""
    return json.dumps(recipe_schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
