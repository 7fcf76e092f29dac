"""One line for every error that a user can mend."""

from __future__ import annotations

from difflib import get_close_matches

from pydantic import ValidationError

from hftransfer.recipe import Recipe

# pydantic puts the chosen member of a union into the location; users write strategy.r, not strategy.lora.r.
UNIONS = ("strategy",)


def one_line(error: Exception) -> str:
    """What is wrong, where and what to do, on one line."""
    cause = error if isinstance(error, ValidationError) else error.__cause__
    if isinstance(cause, ValidationError):
        return _of_recipe(cause)
    return " ".join(str(error).split())


def _of_recipe(error: ValidationError) -> str:
    """The first of pydantic's findings, in the words of the command line."""
    found = error.errors(include_url=False)
    first = found[0]
    location = [str(part) for part in first["loc"]]
    if len(location) > 2 and location[0] in UNIONS:
        del location[1]
    where = ".".join(location)
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    if first["type"] == "extra_forbidden":
        message = "unknown setting"
        near = get_close_matches(where, recipe_fields(first["loc"]), n=1)
        message += f"; did you mean {near[0]}?" if near else ""
    elif first["type"] == "missing":
        message = f"required; give it with --{where} or in the YAML file"
    else:
        message = f"{first['msg']}, not {first['input']!r}"
    return f"{where}: {message}{more}"


def recipe_fields(location: tuple[str | int, ...]) -> list[str]:
    """Dotted names of the settings beside the one at this location."""
    schema = Recipe.model_json_schema()
    if len(location) == 1:
        return list(schema["properties"])
    section = str(location[0])
    if section in UNIONS:
        members = schema["properties"][section]["discriminator"]["mapping"]
        reference = members.get(str(location[1]), "")
    else:
        reference = schema["properties"].get(section, {}).get("$ref", "")
    properties = schema["$defs"].get(str(reference).rpartition("/")[2], {}).get("properties", {})
    return [f"{section}.{name}" for name in properties]
