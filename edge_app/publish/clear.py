"""Take back what a device has left on a broker, when it is gone for good or moves elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from paho.mqtt.enums import MQTTProtocolVersion

from edge_app.errors import EdgeAppError
from edge_app.publish.link import KEEPALIVE_S, Broker, new_client

_ANSWER_S = 10.0


def clear_retained(broker: Broker, topics: Sequence[str]) -> dict[str, bytes]:
    """Empty what is retained on `topics`; return what that was, as far as we may read it.

    Speaks MQTT 3.1.1, which every broker does. Raises EdgeAppError when the broker is not there,
    refuses, or does not acknowledge.
    """
    held: dict[str, bytes] = {}
    open_ids: set[int] = set()
    done = threading.Event()
    fault = "it does not answer"

    def on_connect(client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        nonlocal fault
        if reason.is_failure:
            fault = str(reason)
            done.set()
        else:
            fault = "it does not acknowledge"
            client.subscribe([(topic, 1) for topic in topics])

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        if message.retain:
            held[message.topic] = bytes(message.payload)

    def on_subscribe(client: Any, *_: Any) -> None:
        # What is retained is on its way: it comes before the acknowledgement of what follows.
        open_ids.update(client.publish(topic, b"", qos=1, retain=True).mid for topic in topics)

    def on_publish(_client: Any, _data: Any, message_id: int, *_: Any) -> None:
        nonlocal fault
        open_ids.discard(message_id)
        if not open_ids:
            fault = ""
            done.set()

    client = new_client(broker, MQTTProtocolVersion.MQTTv311)
    client.on_connect = on_connect
    client.on_message = on_message
    client.on_subscribe = on_subscribe
    client.on_publish = on_publish
    try:
        client.connect(broker.host, broker.port, KEEPALIVE_S)
    except OSError as error:
        raise EdgeAppError(
            f"broker {broker.host}:{broker.port}: {error}", hint="is it running, and reachable?"
        ) from error
    client.loop_start()
    try:
        done.wait(_ANSWER_S)
    finally:
        client.disconnect()
        client.loop_stop()
    if fault:
        raise EdgeAppError(f"broker {broker.host}:{broker.port}: {fault}")
    return held
