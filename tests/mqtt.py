"""A publisher, and an ear that hears what it says: for the tests of the MQTT client."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from edge_app.domain import Delivery, Message
from edge_app.publish import wire
from edge_app.publish.link import Broker
from edge_app.publish.listen import Received, listening
from edge_app.publish.mqtt import MqttPublisher
from edge_app.publish.spool import Spool

PATIENCE_S = 30.0
TOPICS = wire.Topics("edge", "t")
ONLINE = wire.status_message(TOPICS, online=True)
OFFLINE = wire.status_message(TOPICS, online=False)


@contextlib.contextmanager
def publishing(
    port: int, spool: Spool | None = None, subscriptions: Sequence[str] = (), **broker: Any
) -> Iterator[MqttPublisher]:
    """Run a publisher while the block lasts; `broker`: fields of `Broker`."""
    where = replace(Broker("127.0.0.1", port, "edge-app-t"), **broker)
    spool = spool or Spool(64_000_000)
    publisher = MqttPublisher(where, spool, ONLINE, OFFLINE, subscriptions=subscriptions)
    try:
        yield publisher
    finally:
        publisher.close()


def threads() -> list[str]:
    """Return the publishers' threads that run."""
    return [thread.name for thread in threading.enumerate() if thread.name == "mqtt"]


def record(number: int) -> Message:
    return Message(TOPICS.result, b'{"n":%d}' % number, Delivery.SPOOLED)


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for something that nothing reports; the test's time limit ends it."""
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


class Ear:
    """What a subscriber of everything hears, in order."""

    def __init__(self, arrived: Any) -> None:
        self._arrived = arrived
        self.heard: list[Received] = []

    def listen_until(self, is_enough: Callable[[], object]) -> None:
        while not is_enough():
            received = self._arrived.get(timeout=PATIENCE_S)
            if received is None:  # the broker is gone
                return
            self.heard.append(received)

    def listen_until_record(self, number: int) -> None:
        last = b'"n":%d}' % number
        self.listen_until(lambda: self.heard and self.heard[-1][1].endswith(last))

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for heard, payload in self.heard if heard == topic]

    def results(self) -> list[dict[str, int]]:
        return [json.loads(payload) for payload in self.payloads(TOPICS.result)]

    def numbers(self) -> list[int]:
        return [result["n"] for result in self.results()]


@contextlib.contextmanager
def ear_at(port: int) -> Iterator[Ear]:
    broker = Broker("127.0.0.1", port, f"ear-{time.monotonic_ns()}")
    with listening(broker, ["edge/#"]) as arrived:
        yield Ear(arrived)
