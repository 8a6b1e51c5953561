"""`to_toml`: the appliance's configuration, from a dictionary of the inventory to TOML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(config: Mapping[str, Any]) -> str:
    """Return nested dictionaries as TOML tables, in the order given.

    Raises ValueError naming the key whose value TOML cannot say, such as a null.
    """
    lines = list(_table(config, ()))
    return "\n".join(lines).strip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    # A table's own values come before the tables inside it: after a header, all belongs to it.
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = []
    if path and (values or not tables):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value, (*path, key))}" for key, value in values.items()]
    for key, inner in tables.items():
        lines += _table(inner, (*path, key))
    return lines


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _value(value: object, path: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item, path) for item in value)}]"
    raise ValueError(
        f"{'.'.join(path)}: found {value!r}; allowed: text, a number, true, false, a list of them"
    )


def _string(text: str) -> str:
    # A JSON string is a TOML string, but for one control character.
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


class FilterModule:
    """What Ansible looks for in a file of filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name the filters."""
        return {"to_toml": to_toml}
