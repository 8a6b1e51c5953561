"""Plain data into msgspec structs, reporting every fault instead of the first.

Each fault names the dotted path, what was found, what is allowed, and the nearest known name.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

S = TypeVar("S", bound=Struct)

_LONGEST_WORD = 60  # what is longer is no slip of a finger, and takes long to compare


def convert(kind: type[S], data: object) -> tuple[S | None, list[str]]:
    """Return `data` as a `kind`, and what is wrong with it.

    With faults, what is returned holds the sound values and defaults, so that a caller can go on
    and check their meaning; None when too little is sound for that.
    """
    faults: list[str] = []
    return _struct(kind, data, "", faults), faults


def shown(value: object) -> str:
    """Return `value` as one would write it, cut to a readable length."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except ValueError:  # more digits than Python writes out
        text = "a number of very many digits"
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the choice most like `word`, or nothing."""
    if len(word) > _LONGEST_WORD:
        return ""
    found = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _struct(kind: type[S], data: object, path: str, faults: list[str]) -> S | None:
    if not isinstance(data, dict):
        faults.append(f"{path}: found {shown(data)}; allowed: a table [{path}]")
        return None
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for key in data:
        if key not in fields:
            near = nearest(key, fields)
            faults.append(
                f"{_join(path, key)}: unknown key{near}; allowed: {', '.join(fields) or 'none'}"
            )
    values: dict[str, object] = {}
    for name, field in fields.items():
        here = _join(path, name)
        if name in data:
            value = _value(field.type, data[name], here, faults)
            values |= {} if value is None else {name: value}
        elif field.required:
            faults.append(f"{here}: missing; allowed: {_allowed(msgspec.json.schema(field.type))}")
    required = {name for name, field in fields.items() if field.required}
    return kind(**values) if required <= values.keys() else None


def _value(kind: Any, value: object, path: str, faults: list[str]) -> object:
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _struct(kind, value, path, faults)
    table = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(table) is dict and isinstance(value, dict) and value:
        return _tables(get_args(table)[1], value, path, faults)
    finite = not isinstance(value, float) or math.isfinite(value)  # TOML knows nan and inf
    try:
        return msgspec.convert(value if finite else None, kind)
    except msgspec.ValidationError:
        schema = msgspec.json.schema(kind)
        near = nearest(value, schema.get("enum", ())) if isinstance(value, str) else ""
        faults.append(f"{path}: found {shown(value)}{near}; allowed: {_allowed(schema)}")
        return None


def _tables(
    kind: type[Struct], tables: dict[str, object], path: str, faults: list[str]
) -> dict[str, Struct]:
    """Convert tables named by the user; a plain value means that the name was forgotten."""
    found = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            faults.append(
                f"{_join(path, name)}: found {shown(table)}; allowed: a table with a name of "
                f"your own, such as [{path}.main], and {name} in it"
            )
        elif (item := _struct(kind, table, _join(path, name), faults)) is not None:
            found[name] = item
    return found


_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
}
_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} character",
    "maxLength": "at most {} characters",
    "pattern": "matching {}",
}


def _allowed(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(shown(choice) for choice in schema["enum"])
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}, each {_allowed(schema['prefixItems'][0])}"
    if "description" in schema:  # it says more than the limits do
        return str(schema["description"])
    words = [_KINDS[schema["type"]]]
    words += [phrase.format(schema[key]) for key, phrase in _LIMITS.items() if key in schema]
    return ", ".join(words)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
