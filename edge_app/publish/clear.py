"""Take back what a device has left on a broker, when it is gone for good or moves elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from paho.mqtt.enums import MQTTProtocolVersion

from edge_app.publish.link import Broker, new_client
from edge_app.publish.listen import ANSWER_S, refused, visiting
from edge_app.publish.trouble import explain

_UNACKNOWLEDGED = "it does not acknowledge, or hangs up: may this client write there?"


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
            fault = _UNACKNOWLEDGED
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

    def on_disconnect(*_: Any) -> None:
        nonlocal fault
        # TLS 1.3 says only now what is wrong with our certificate.
        if not done.is_set() and fault != _UNACKNOWLEDGED:
            fault = explain(client.failure or ConnectionResetError(), broker)
        done.set()

    client.on_connect = on_connect
    client.on_message = on_message
    client.on_subscribe = on_subscribe
    client.on_publish = on_publish
    client.on_disconnect = on_disconnect
    with visiting(client, broker):
        done.wait(ANSWER_S)
        if fault:
            raise refused(broker, fault)
    return held
