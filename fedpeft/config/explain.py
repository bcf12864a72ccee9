"""Say what is wrong with a table in a newcomer's words: place, value, what was expected, the nearest name."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedpeft.config.base import Frozen
from fedpeft.plugins import nearest, taking

__all__ = ["explain"]

_Schema = Mapping[str, Any]
_NOUNS = {"integer": "an integer", "number": "a number", "string": "a string", "array": "an array", "object": "a table"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def explain(key: str, kind: type[Frozen], given: Any, error: ValidationError, *, group: str | None = None) -> list[str]:
    """Return one line for each wrong value below a key; ``group`` is that of the plug-in whose options these are."""
    schema = kind.model_json_schema()
    lines = [
        _elsewhere(key, group, detail) or _line(key, schema, given, detail)
        for detail in error.errors(include_url=False)
    ]
    return list(dict.fromkeys(lines))


def _elsewhere(key: str, group: str | None, detail: ErrorDetails) -> str | None:
    """Return the line on a key that other plug-ins of the group have and this one has not."""
    if group is None or detail["type"] != "extra_forbidden" or len(detail["loc"]) != 1:
        return None
    option = str(detail["loc"][0])
    others = taking(group, option)
    return f"{key}.{option}: unknown key of this {group}; these take it: {', '.join(others)}" if others else None


def _line(key: str, schema: _Schema, given: Any, detail: ErrorDetails) -> str:
    fault, loc = detail["type"], detail["loc"]
    place, wanted, value = _walk(key, schema, given, loc)
    if fault == "extra_forbidden":
        return f"{place}.{loc[-1]}: unknown key{nearest(str(loc[-1]), list(wanted.get('properties', {})))}"
    if fault == "missing" and value is None:
        return f"{place}: missing; expected {_words(wanted, schema)}"
    if fault == "value_error":
        shown = "" if isinstance(value, Mapping) else f" = {json.dumps(value)}"
        return f"{place}{shown}: {detail['msg'].removeprefix('Value error, ')}"
    words = _words(wanted, schema).replace("a number", "a finite number" if fault == "finite_number" else "a number")
    return f"{place} = {json.dumps(value)}: expected {words}{_close(value, wanted)}"


def _walk(key: str, schema: _Schema, given: Any, loc: tuple[int | str, ...]) -> tuple[str, _Schema, Any]:
    """Follow a place down to the last value that stands in the file; a union's branches are no such value."""
    place, node, value = key, schema, given
    for step in loc:
        inner = _inner(node, step)
        if inner is None or (isinstance(step, int) and step >= len(value)):
            break
        place, node = f"{place}.{step}", _resolve(inner, schema)
        value = value.get(step) if isinstance(value, Mapping) else value[step]
    return place, node, value


def _inner(node: _Schema, step: int | str) -> Any:
    if isinstance(step, str):
        return node.get("properties", {}).get(step)
    fixed = node.get("prefixItems", ())
    return fixed[step] if step < len(fixed) else node.get("items")


def _resolve(node: _Schema, schema: _Schema) -> _Schema:
    """Return what a reference names, and of ``X | None`` the X: TOML cannot say None."""
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    given = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return _resolve(given[0], schema) if len(given) == 1 else node


def _words(node: _Schema, schema: _Schema) -> str:
    node = _resolve(node, schema)
    if "anyOf" in node:
        return " or ".join(_words(option, schema) for option in node["anyOf"] if option.get("type") != "null")
    if "enum" in node or "const" in node:
        return " or ".join(json.dumps(value) for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "boolean":
        return "true or false"
    return _NOUNS.get(node.get("type", ""), "another value") + _bounds(node, schema)


def _bounds(node: _Schema, schema: _Schema) -> str:
    limits = [f"{sign} {_number(node[name])}" for name, sign in _BOUNDS.items() if name in node]
    limits += [f"such as {', '.join(node['examples'])}"] if "examples" in node else []
    limits += [f"that matches {node['pattern']}"] if "pattern" in node and "examples" not in node else []
    limits += _lengths(node.get("minLength", node.get("minItems")), node.get("maxLength", node.get("maxItems")))
    limits += [f"with each element {_words(node['items'], schema)}"] if "items" in node else []
    return f" {' and '.join(limits)}" if limits else ""


def _lengths(least: int | None, most: int | None) -> list[str]:
    if least is not None and least == most:
        return [f"of length {least}"]
    return [f"of length {sign} {bound}" for sign, bound in ((">=", least), ("<=", most)) if bound is not None]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _close(value: Any, node: _Schema) -> str:
    known = [option for option in node.get("enum", ()) if isinstance(option, str)]
    close = get_close_matches(value, known, n=1) if isinstance(value, str) else []
    return f"; did you mean {json.dumps(close[0])}?" if close else ""
