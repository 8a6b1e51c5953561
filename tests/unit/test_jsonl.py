from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

from edge_app.domain import Delivery, Message
from edge_app.publish.jsonl import JsonLinesPublisher
from edge_app.stats import MqttState, SpoolState

WAIT_S = 10.0
RESULT = Message("edge/x/result", b'{"v":1}', Delivery.SPOOLED)


def lines(out: io.BytesIO) -> list[Any]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


@contextlib.contextmanager
def publishing(out: BinaryIO, **options: Any) -> Iterator[JsonLinesPublisher]:
    publisher = JsonLinesPublisher(out, **options)
    try:
        yield publisher
    finally:
        publisher.close()


def test_one_record_a_line_with_its_topic_and_number() -> None:
    out = io.BytesIO()
    with publishing(out) as publisher:
        publisher.offer(RESULT)
        publisher.offer(Message('edge/"x/stats', b'{"v":1,"n":2}', Delivery.VOLATILE))
        publisher.offer(RESULT)
        assert publisher.drain(WAIT_S)
        assert publisher.state() == (SpoolState(), MqttState())
    assert lines(out) == [
        {"topic": "edge/x/result", "seq": 1, "v": 1},
        {"topic": 'edge/"x/stats', "v": 1, "n": 2},
        {"topic": "edge/x/result", "seq": 2, "v": 1},
    ]


def test_nothing_is_written_after_the_end() -> None:
    out = io.BytesIO()
    publisher = JsonLinesPublisher(out)
    publisher.close()
    publisher.offer(RESULT)
    assert out.getvalue() == b""
    assert publisher.state()[0] == SpoolState(dropped=1)


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Give the reading and the buffered writing end, as standard output is."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "wb") as write:
        yield read, write


def test_a_pipe_that_nobody_reads_blocks_nothing(
    pipe: tuple[BinaryIO, BinaryIO], caplog: pytest.LogCaptureFixture
) -> None:
    read, write = pipe
    publisher = JsonLinesPublisher(write, max_bytes=10_000)
    try:
        for _ in range(5000):  # more than a pipe holds, and what may wait
            publisher.offer(RESULT)
        assert not publisher.drain(0)
        spool, _ = publisher.state()
        assert 0 < spool.bytes <= 10_000
        assert spool.dropped > 0
        publisher.close()
        assert publisher.state()[0].dropped == spool.dropped + spool.queued
        assert len(caplog.records) == 1
    finally:
        read.close()
        publisher.close()


def test_a_late_reader_gets_everything_in_order(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    read, write = pipe
    with publishing(write) as publisher:
        for _ in range(5000):
            publisher.offer(RESULT)
        assert not publisher.drain(0)
        assert [json.loads(next(read))["seq"] for _ in range(5000)] == list(range(1, 5001))
        assert publisher.drain(WAIT_S)
        assert publisher.state()[0] == SpoolState()


def test_a_reader_that_left_stops_nothing_and_is_told(
    pipe: tuple[BinaryIO, BinaryIO], caplog: pytest.LogCaptureFixture
) -> None:
    read, write = pipe
    read.close()
    with publishing(write) as publisher:
        publisher.offer(RESULT)
        publisher.offer(RESULT)
        assert publisher.drain(WAIT_S)  # or a recording that is over would never end
        assert publisher.state()[0] == SpoolState(dropped=2)
    assert len(caplog.records) == 1


def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "wb") as full, publishing(full) as publisher:  # noqa: PTH123
        publisher.offer(RESULT)
        publisher.offer(RESULT)
        assert publisher.drain(WAIT_S)
        assert publisher.state()[0] == SpoolState(dropped=2)


def test_a_closed_file_stops_nothing() -> None:
    out = io.BytesIO()
    out.close()
    with publishing(out) as publisher:
        publisher.offer(RESULT)
        assert publisher.drain(WAIT_S)
