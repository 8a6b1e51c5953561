"""Spools on a disk, as the tests make them: the real parts with shorter ticks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_app.domain import Delivery, Event, Message
from edge_app.publish import wire
from edge_app.publish.claim import Claim
from edge_app.publish.keeper import Keeper
from edge_app.publish.spool import Spool
from edge_app.sensors.clock import read_clock

TOPICS = wire.Topics("edge", "t")
PATIENCE_S = 20.0


def record(number: int, padding_bytes: int = 0) -> Message:
    """Return a result that says which one it is."""
    text = b'{"n":%d,"x":"%s"}' % (number, b"x" * padding_bytes)
    return Message(TOPICS.result, text, Delivery.SPOOLED)


def as_message(event: Event) -> Message:
    return wire.event_message(TOPICS, event, time.monotonic_ns(), read_clock())


@contextmanager
def spool_at(
    path: Path,
    max_bytes: int = 64_000_000,
    memory_bytes: int = 32_000_000,
    tick_s: float = 0.01,
    claim: Claim | None = None,
) -> Iterator[Spool]:
    """Keep a spool at `path`; it is closed in order when the block ends."""
    spool = Spool(memory_bytes, as_message)
    keeper = Keeper(spool, path, max_bytes, claim=claim, tick_s=tick_s, retry_s=0.02)
    try:
        yield spool
    finally:
        keeper.close()


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for what nothing reports."""
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.001)


def wait_until_saved(spool: Spool) -> None:
    wait_until(lambda: not spool.newest_rows(1))


def take(spool: Spool, in_flight: int = 0) -> tuple[int, Message] | None:
    """Take the next message, waiting while it is read from the disk; None: all are taken.

    `in_flight`: how many are taken and not acknowledged, itself not counted.
    """
    end_s = time.monotonic() + PATIENCE_S
    while (taken := spool.take()) is None and spool.state().queued > in_flight:
        assert time.monotonic() < end_s, "the disk gives nothing"
        time.sleep(0.001)
    return taken


def drained(spool: Spool, limit: int = 10_000_000) -> list[dict[str, Any]]:
    """Take and acknowledge everything, as a broker would; returns the payloads."""
    found: list[dict[str, Any]] = []
    while len(found) < limit and (taken := take(spool)) is not None:
        seq, message = taken
        found.append(json.loads(message.payload))
        assert found[-1]["seq"] == seq
        spool.ack(seq)
    return found


def numbers(payloads: list[dict[str, Any]]) -> list[int]:
    """Return which records these are, events left out."""
    return [payload["n"] for payload in payloads if "n" in payload]


def events(payloads: list[dict[str, Any]], kind: str = "") -> list[dict[str, Any]]:
    """Return the events among them, of one kind if it is given."""
    found = [payload for payload in payloads if "event" in payload]
    return [event for event in found if not kind or event["event"] == kind]


def unexplained(payloads: list[dict[str, Any]]) -> list[int]:
    """Return the numbers that are missing though no event says that they will never come."""
    seqs = {payload["seq"] for payload in payloads}
    gone: set[int] = set()
    for event in events(payloads, "spool_gap"):
        first, last = event["details"]["first"], event["details"]["last"]
        gone.update(range(first, min(last, max(seqs)) + 1))
    return sorted(set(range(1, max(seqs, default=0) + 1)) - seqs - gone)
