from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from edge_app.domain import Delivery, Message, MqttState, SpoolState
from edge_app.publish import wire
from edge_app.publish.jsonl import JsonLinesPublisher

RESULT = Message("edge/x/result", b'{"v":1}', Delivery.SPOOLED)


def lines(out: io.BytesIO) -> list[Any]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_one_record_a_line_with_its_topic_and_number() -> None:
    out = io.BytesIO()
    publisher = JsonLinesPublisher(out)
    publisher.offer(RESULT)
    publisher.offer(Message("edge/x/stats", b'{"v":1,"n":2}', Delivery.VOLATILE))
    publisher.offer(RESULT)
    publisher.offer(wire.status_message(wire.Topics("edge", 'a"b'), online=True))
    assert lines(out) == [
        {"topic": "edge/x/result", "seq": 1, "v": 1},
        {"topic": "edge/x/stats", "v": 1, "n": 2},
        {"topic": "edge/x/result", "seq": 2, "v": 1},
        {"topic": 'edge/a"b/status', "payload": "online"},
    ]
    assert publisher.state() == (SpoolState(), MqttState())
    assert publisher.drain(0)


def test_nothing_is_written_after_the_end() -> None:
    out = io.BytesIO()
    publisher = JsonLinesPublisher(out)
    publisher.close()
    publisher.offer(RESULT)
    assert out.getvalue() == b""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


def test_a_reader_that_left_stops_nothing(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    os.close(reader)
    publisher = JsonLinesPublisher(io.FileIO(writer, "wb", closefd=False))
    publisher.offer(RESULT)
    publisher.offer(RESULT)
    assert publisher.drain(0)  # or a recording that is over would never end
    assert len(caplog.records) == 1


def test_a_full_disk_stops_nothing() -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        publisher = JsonLinesPublisher(full)
        publisher.offer(RESULT)
        publisher.offer(RESULT)


def test_a_closed_file_stops_nothing() -> None:
    out = io.BytesIO()
    publisher = JsonLinesPublisher(out)
    out.close()
    publisher.offer(RESULT)
