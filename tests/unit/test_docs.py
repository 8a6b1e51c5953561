"""docs/mqtt.md says what the program does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_app.publish import connection, outbox, wire
from tests import mqtt_tables

ROOT = Path(__file__).parents[2]
DOCUMENT = mqtt_tables.FILE.read_text(encoding="utf-8")


def test_the_tables_are_up_to_date() -> None:
    assert mqtt_tables.rendered(DOCUMENT) == DOCUMENT, "run `make docs`"


def test_every_topic_is_there() -> None:
    topics = vars(wire.Topics("edge", "<id>"))
    assert [topic for topic in topics.values() if f"`{topic}" not in DOCUMENT] == []


def test_every_event_is_there() -> None:
    documents = DOCUMENT + (ROOT / "docs/spool.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text() for path in (ROOT / "edge_app").rglob("*.py"))
    named = re.findall(r"(?:\b(?:Event|_say)\(\s*|^ +kind = )\"(\w+)\"", sources, re.MULTILINE)
    kinds = set(named)
    assert {"spool_gap", "promoted", "fallback", "camera_stalled"} <= kinds  # each way to name one
    assert {kind for kind in kinds if f"`{kind}`" not in documents} == set()


def test_every_bound_is_there() -> None:
    assert f"for {connection.SESSION_EXPIRY_S} s" in DOCUMENT
    assert f"{connection.MAX_PACKET_BYTES // 1024} KiB" in DOCUMENT
    assert f"{outbox.RECEIVED_LIMIT} commands may wait" in DOCUMENT


def test_the_schema_is_the_version() -> None:
    status = wire.status_message(wire.Topics("edge", "t"), online=True)
    assert status.schema == f"edge-app/{wire.VERSION}"


@dataclass
class Odd:
    """What it is. `one`: a; `two`, `three`: both of b, None if not. `other`: not a field."""

    one: int
    two: tuple[int, ...] | None
    three: str


def test_what_a_docstring_says_of_its_fields() -> None:
    assert mqtt_tables.meanings(Odd) == {
        "one": "a",
        "two": "both of b, `null` if not. `other`: not a field",
        "three": "both of b, `null` if not. `other`: not a field",
    }
