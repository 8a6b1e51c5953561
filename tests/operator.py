"""Somebody at the broker who commands an appliance and hears everything it says."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 30.0
DEVICE = "under-test"
REPLIES = "operator/replies"


@dataclass(frozen=True)
class Heard:
    """One message, with the MQTT 5 properties that matter here."""

    topic: str
    payload: bytes
    content_type: str
    correlation: bytes

    @property
    def kind(self) -> str:
        return self.topic.rpartition("/")[2]

    def json(self) -> Any:
        return json.loads(self.payload)


class Operator:
    """Publishes commands; `heard` is everything anybody published since, in order."""

    def __init__(self, client: paho.Client, *, v5: bool) -> None:
        self.client = client
        self.heard: list[Heard] = []
        self._v5 = v5
        self._more = threading.Condition()
        self._numbers = itertools.count(1)
        client.on_message = self._on_message

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        with self._more:
            self.heard.append(
                Heard(
                    message.topic,
                    bytes(message.payload),
                    getattr(properties, "ContentType", ""),
                    getattr(properties, "CorrelationData", b""),
                )
            )
            self._more.notify_all()

    def hear(self, wanted: Callable[[Heard], bool], since: int = 0) -> Heard:
        """Return the first message for which `wanted`, of those since number `since`."""
        found: list[Heard] = []

        def is_there() -> bool:
            found[:] = [heard for heard in self.heard[since:] if wanted(heard)]
            return bool(found)

        with self._more:
            assert self._more.wait_for(is_there, PATIENCE_S), [h.topic for h in self.heard[-20:]]
        return found[0]

    def of_kind(self, kind: str, since: int = 0) -> list[Any]:
        """Return the records of one kind (result, stats ...) since number `since`."""
        return [heard.json() for heard in self.heard[since:] if heard.kind == kind]

    def send(self, command: str, arguments: object = None, **options: Any) -> None:
        """Publish a command; bytes are sent as they are."""
        if isinstance(arguments, bytes):
            payload = arguments
        else:
            payload = b"" if arguments is None else json.dumps(arguments).encode()
        self.client.publish(f"edge-cmd/{DEVICE}/{command}", payload, **{"qos": 1, **options})

    def ask(self, command: str, arguments: object = None, reply_topic: str = REPLIES) -> Any:
        """Publish a command and return the reply to it, whatever else is said meanwhile."""
        since, number = len(self.heard), str(next(self._numbers)).encode()
        if not self._v5:
            self.send(command, arguments)
            return self.hear(lambda h: h.kind == "reply", since).json()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = reply_topic
        properties.CorrelationData = number
        self.send(command, arguments, properties=properties)
        return self.hear(lambda h: h.correlation == number and h.kind != command, since).json()

    def wait_until_served(self) -> None:
        """Return once the appliance publishes results, and so is subscribed."""
        self.hear(lambda h: h.kind == "result")


@contextmanager
def operating(port: int, *, v5: bool = True) -> Iterator[Operator]:
    """Connect to the broker at `port` of this machine, and hear all there is."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"operator-{time.monotonic_ns()}",
        protocol=MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311,
    )
    operator = Operator(client, v5=v5)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.subscribe("#", 1)
    client.loop_start()
    try:
        assert subscribed.wait(PATIENCE_S)
        yield operator
    finally:
        client.disconnect()
        client.loop_stop()
