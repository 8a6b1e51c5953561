"""The other side of the broker: read what appliances publish. For `watch` and the demo."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from paho.mqtt.enums import MQTTProtocolVersion

from edge_app.errors import EdgeAppError
from edge_app.publish.link import KEEPALIVE_S, Broker, Client, new_client
from edge_app.publish.trouble import explain

ANSWER_S = 10.0

Received = tuple[str, bytes]  # topic, payload


@contextmanager
def listening(broker: Broker, filters: list[str]) -> Iterator[queue.SimpleQueue[Received | None]]:
    """Subscribe to `filters`; yields a queue of what arrives, and None once the link is lost.

    Speaks MQTT 3.1.1, which every broker does. What is published once the block is entered will
    arrive. Raises EdgeAppError when the broker is not there or refuses.
    """
    arrived: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
    answered = threading.Event()
    refusal = "it does not answer"

    def on_connect(client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        nonlocal refusal
        if reason.is_failure:
            refusal = str(reason)
            answered.set()
        else:
            client.subscribe([(filter_, 1) for filter_ in filters])

    def on_subscribe(_client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        nonlocal refusal
        refused = [
            f"{filter_}: {reason}"
            for filter_, reason in zip(filters, reasons, strict=False)
            if reason.is_failure
        ]
        refusal = f"it refuses to send {'; '.join(refused)}" if refused else ""
        answered.set()

    client = new_client(broker, MQTTProtocolVersion.MQTTv311)
    client.on_connect = on_connect
    client.on_subscribe = on_subscribe

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        with suppress(UnicodeDecodeError):  # a topic that is none
            arrived.put((message.topic, bytes(message.payload)))

    def on_disconnect(*_: Any) -> None:
        nonlocal refusal
        if not answered.is_set():  # TLS 1.3 says only now that it does not like our certificate
            refusal = explain(client.failure or ConnectionResetError(), broker)
            answered.set()
        arrived.put(None)

    client.on_message = on_message
    client.on_disconnect = on_disconnect
    with visiting(client, broker):
        answered.wait(ANSWER_S)
        if refusal:
            raise refused(broker, refusal)
        yield arrived


@contextmanager
def visiting(client: Client, broker: Broker) -> Iterator[None]:
    """Connect, and serve the client's callbacks in a thread until the block ends.

    Raises EdgeAppError when the broker is not there.
    """
    try:
        client.connect(broker.host, broker.port, KEEPALIVE_S)
    except OSError as error:
        raise EdgeAppError(
            f"broker {broker.host}:{broker.port}: {explain(error, broker)}",
            hint="is it running, and reachable?",
        ) from error
    client.loop_start()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def refused(broker: Broker, reason: str) -> EdgeAppError:
    """Return the error that says why the broker does not do what it was asked for."""
    return EdgeAppError(
        f"broker {broker.host}:{broker.port}: {reason}",
        hint="see mqtt.username, mqtt.password_file and the broker's rules (docs/mqtt.md)",
    )
