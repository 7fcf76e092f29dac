"""One line for every error that a user can mend."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from cyclopts import CycloptsError, UnknownOptionError
from pydantic import ValidationError

from hftransfer.folded_settings import FOLDED, NOW_PART
from hftransfer.recipe import UNIONS, Recipe
from hftransfer.redaction import redact

# Longer values do not help in a message of one line.
MAX_SHOWN = 80
MAX_LINE = 600


def one_line(error: Exception) -> str:
    """What is wrong, where and what to do, on one line."""
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0].removeprefix("--")
        if option in FOLDED:
            return f"{option}: {NOW_PART}; {FOLDED[option]}"
    cause = error if isinstance(error, ValidationError) else error.__cause__
    if isinstance(cause, ValidationError):
        # cyclopts validates a section by itself: its own name has to go before the setting's.
        argument = error.argument if isinstance(error, CycloptsError) else None
        section = argument.name.removeprefix("--") if argument is not None else "*"
        return ": ".join(describe(cause, () if section == "*" else (section,)))
    line = " ".join(str(error).split())
    # A path or a value of thousands of letters would bury the message: its beginning and its end say enough.
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 3]} ... {line[-MAX_LINE // 2 :]}"


def describe(error: ValidationError, section: tuple[str, ...] = ()) -> tuple[str, str]:
    """The first of pydantic's findings, in the words of the command line.

    Args:
        error: What pydantic found.
        section: What was validated, if not the whole recipe.

    Returns:
        The dotted name of the setting, and what is wrong with it and what to do.
    """
    found = error.errors(include_url=False)
    first = found[0]
    location = (*section, *map(str, first["loc"]))
    where = setting_name(location)
    if first["type"] == "union_tag_invalid":
        return f"{where}.type", _unknown_member(where, first["ctx"])
    others = {setting_name((*section, *map(str, other["loc"]))) for other in found} - {where}
    more = f" ({len(others)} more)" if others else ""
    kinds = [other["type"] for other in found if setting_name((*section, *map(str, other["loc"]))) == where]
    return where, " ".join(f"{_what(first, where, location, kinds)}{more}".split())


def setting_name(location: tuple[str, ...]) -> str:
    """The dotted name of a setting as users write it, without the members of unions that pydantic adds."""
    parts = list(location)
    # pydantic puts the chosen member of a union into the location; users write strategy.r, not strategy.lora.r.
    if len(parts) > 2 and parts[0] in UNIONS:
        del parts[1]
    return ".".join(part for part in parts if "[" not in part)


def recipe_fields(location: tuple[str, ...]) -> list[str]:
    """Dotted names of the settings beside the one at this location."""
    schema = Recipe.model_json_schema()
    if len(location) == 1:
        return list(schema["properties"])
    section = location[0]
    if section in UNIONS:
        reference = schema["properties"][section]["discriminator"]["mapping"].get(location[1], "")
    else:
        reference = schema["properties"].get(section, {}).get("$ref", "")
    properties = schema["$defs"].get(str(reference).rpartition("/")[2], {}).get("properties", {})
    return [f"{section}.{name}" for name in properties]


def _what(finding: Any, where: str, location: tuple[str, ...], kinds: list[str]) -> str:
    """What one finding of pydantic means."""
    kind = finding["type"]
    if kind == "extra_forbidden":
        near = get_close_matches(where, recipe_fields(location), n=1)
        return "unknown setting" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "missing":
        return f"required; give it with --{where} or in the YAML file"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"should be a mapping of settings, not {_shown(finding['input'])}"
    if kind == "value_error":
        return str(finding["msg"]).removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        return f"should be ORG/NAME@COMMIT, with all 40 hex digits of the commit, not {_shown(finding['input'])}"
    alternative = " or a list" if kind == "literal_error" and "list_type" in kinds else ""
    return f"{finding['msg']}{alternative}, not {_shown(finding['input'])}"


def _unknown_member(union: str, context: Any) -> str:
    """What a name means that no member of a union has."""
    tag, known = context["tag"], context["expected_tags"].replace("'", "")
    near = get_close_matches(tag, known.split(", "), n=1)
    return f"no {union} is called {_shown(tag)}; " + (f"did you mean {near[0]}?" if near else f"there are {known}")


def _shown(value: Any) -> str:
    text = redact(repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
