"""Writes the tables of docs/mqtt.md from the records and commands they are about: `make docs`.

What a field means is said in its record's docstring, as "`field`: meaning."
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import inspect

from edge_app.commands import COMMANDS
from edge_app.publish import wire
from edge_app.report import Info

FILE = Path(__file__).parents[1] / "docs/mqtt.md"
_BEGIN = re.compile(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_NAMED = re.compile(r"(?:^|(?<=[.;] ))((?:`\w+`, )*`\w+`): ")

_WORDS = {
    inspect.AnyType: "any",
    inspect.BoolType: "boolean",
    inspect.CustomType: "any",
    inspect.FloatType: "number",
    inspect.IntType: "integer",
    inspect.NoneType: "null",
    inspect.StrType: "text",
    inspect.DictType: "object",
    inspect.DataclassType: "object",
    inspect.StructType: "object",
}
_RECORDS = (inspect.DataclassType, inspect.StructType)
_SEQUENCES = (inspect.ListType, inspect.VarTupleType)


def rendered(text: str) -> str:
    """Return the document with what is between its markers written anew."""
    parts = {
        "stamp": _table(wire.Stamped),
        "result": _table(wire.ResultRecord),
        "event": _table(wire.EventRecord),
        "stats": _table(wire.StatsRecord),
        "info": _table(Info),
        "reply": _table(wire.ReplyRecord),
        "commands": _commands(),
    }

    def renewed(found: re.Match[str]) -> str:
        return f"<!-- generated: {found[1]} -->\n{parts.pop(found[1])}<!-- end -->"

    text = _BEGIN.sub(renewed, text)
    if parts:
        raise SystemExit(f"{FILE}: no marker for {', '.join(parts)}")
    return text


def _table(record: type) -> str:
    rows = [f"| `{path}` | {kind} | {meaning} |\n" for path, kind, meaning in _rows(record)]
    return "| field | type | meaning |\n|---|---|---|\n" + "".join(rows)


def _rows(record: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield path, type and meaning of every field, those of records within it included."""
    said = meanings(record)
    info: Any = inspect.type_info(record)
    is_stamped = issubclass(record, wire.Stamped) and record is not wire.Stamped
    for field in info.fields[len(wire.Stamped.__struct_fields__) if is_stamped else 0 :]:
        path = prefix + field.encode_name
        inner, suffix = _record_in(field.type)
        meaning = said.get(field.name, "")
        if inner is not None and not meaning:
            meaning = _summary(inner)
        yield path, _kind(field.type), meaning
        if inner is not None:
            yield from _rows(inner, f"{path}{suffix}.")


def meanings(record: type) -> dict[str, str]:
    """Return what the record's docstring says of its fields."""
    text = " ".join((record.__doc__ or "").split())
    found = _named(record, text)
    ends = [*(match.start() for match in found[1:]), len(text)]
    said = {}
    for match, end in zip(found, ends, strict=False):
        meaning = text[match.end() : end].strip().rstrip(".;").replace("None", "`null`")
        said.update(dict.fromkeys(_names(match), _linked(meaning)))
    return said


def _named(record: type, text: str) -> list[re.Match[str]]:
    info: Any = inspect.type_info(record)
    fields = {field.name for field in info.fields}
    return [match for match in _NAMED.finditer(text) if _names(match) <= fields]


def _names(match: re.Match[str]) -> set[str]:
    return set(re.findall(r"\w+", match[1]))


def _linked(text: str) -> str:
    return re.sub(r"\b(\w+\.md)\b", r"[\1](\1)", text)


def _summary(record: type) -> str:
    text = (record.__doc__ or "").partition("\n")[0]
    for match in _named(record, text)[:1]:
        text = text[: match.start()]
    return text.strip().rstrip(".").replace("None", "`null`")


def _record_in(node: inspect.Type) -> tuple[type | None, str]:
    """Return the record that a field holds, if it does, and what its path gets."""
    if isinstance(node, _RECORDS):
        return node.cls, ""
    if isinstance(node, inspect.UnionType):
        for one in node.types:
            inner, suffix = _record_in(one)
            if inner is not None:
                return inner, suffix
    if isinstance(node, _SEQUENCES):
        inner, suffix = _record_in(node.item_type)
        return inner, "[]" + suffix
    if isinstance(node, inspect.DictType):
        inner, suffix = _record_in(node.value_type)
        return inner, ".*" + suffix
    return None, ""


def _kind(node: Any) -> str:
    if isinstance(node, inspect.UnionType):
        return " or ".join(_kind(one) for one in node.types)
    if isinstance(node, inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in node.values)
    if isinstance(node, _SEQUENCES):
        return f"list of {_kind(node.item_type)}"
    if isinstance(node, inspect.TupleType):
        return f"list of {len(node.item_types)} {_kind(node.item_types[0])}s"
    word = _WORDS[type(node)]
    low, high = getattr(node, "ge", None), getattr(node, "le", None)
    if low is not None and high is not None:
        return f"{word}, {low:g} to {high:g}"
    longest = getattr(node, "max_length", None)
    return f"{word}, at most {longest} characters" if longest else word


def _commands() -> str:
    lines = ["| command | does | arguments | answers with |\n|---|---|---|---|\n"]
    replies: dict[str, type] = {}
    for name, command in COMMANDS.items():
        arguments = [
            f"`{path}`: {kind}{f': {meaning}' if meaning else ''}"
            for path, kind, meaning in _rows(command.arguments)
        ]
        lines.append(
            f"| `{name}` | {command.doc} | {'; '.join(arguments)} | {command.reply.__name__} |\n"
        )
        replies[command.reply.__name__] = command.reply
    for title, reply in replies.items():
        summary = f"{_summary(reply)}.\n\n" if _summary(reply) else ""
        lines.append(f"\n### {title}\n\n{summary}{_table(reply)}")
    return "".join(lines)


if __name__ == "__main__":
    FILE.write_text(rendered(FILE.read_text(encoding="utf-8")), encoding="utf-8")
