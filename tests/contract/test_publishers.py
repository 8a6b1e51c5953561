"""One set of promises for everything that takes messages."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_app.domain import Delivery, Message, Publisher
from edge_app.publish import wire
from edge_app.publish.jsonl import JsonLinesPublisher
from edge_app.publish.link import Broker
from edge_app.publish.mqtt import MqttPublisher
from edge_app.publish.spool import Spool
from edge_app.tools.processes import free_port
from tests.brokers import mosquitto_running

TOPICS = wire.Topics("edge", "t")
ONE_OF_EACH = [
    Message(TOPICS.result, b'{"v":1}', Delivery.SPOOLED),
    Message(TOPICS.event, b'{"v":1}', Delivery.SPOOLED),
    Message(TOPICS.info, b'{"v":1}', Delivery.STATE, retain=True),
    Message(TOPICS.stats, b'{"v":1}', Delivery.VOLATILE, retain=True, expiry_s=30),
]


def over_mqtt(port: int) -> MqttPublisher:
    online, offline = (wire.status_message(TOPICS, online=online) for online in (True, False))
    return MqttPublisher(Broker("127.0.0.1", port, "t"), Spool(1_000_000), online, offline)


@contextlib.contextmanager
def json_lines(_folder: Path) -> Iterator[Publisher]:
    publisher = JsonLinesPublisher(io.BytesIO())
    try:
        yield publisher
    finally:
        publisher.close()


@contextlib.contextmanager
def mqtt(folder: Path) -> Iterator[Publisher]:
    with mosquitto_running(folder) as broker:
        publisher = over_mqtt(broker.port)
        try:
            yield publisher
        finally:
            publisher.close()


@contextlib.contextmanager
def mqtt_without_a_broker(_folder: Path) -> Iterator[Publisher]:
    publisher = over_mqtt(free_port())
    try:
        yield publisher
    finally:
        publisher.close()


Kind = Callable[[Path], contextlib.AbstractContextManager[Publisher]]
REACHABLE = pytest.mark.parametrize("kind", [json_lines, mqtt])
ANY = pytest.mark.parametrize("kind", [json_lines, mqtt, mqtt_without_a_broker])


@REACHABLE
def test_everything_offered_is_delivered(kind: Kind, tmp_path: Path) -> None:
    with kind(tmp_path) as publisher:
        for _ in range(50):
            for message in ONE_OF_EACH:
                publisher.offer(message)
        assert publisher.drain(30)
        spool, _ = publisher.state()
        assert (spool.queued, spool.bytes, spool.dropped) == (0, 0, 0)


@REACHABLE
def test_nothing_offered_is_delivered_too(kind: Kind, tmp_path: Path) -> None:
    with kind(tmp_path) as publisher:
        assert publisher.drain(30)


@ANY
def test_closing_twice_and_offering_afterwards(kind: Kind, tmp_path: Path) -> None:
    with kind(tmp_path) as publisher:
        publisher.close()
        publisher.close()
        for message in ONE_OF_EACH:
            publisher.offer(message)
        publisher.state()


@ANY
def test_closing_at_once(kind: Kind, tmp_path: Path) -> None:
    with kind(tmp_path):
        pass
