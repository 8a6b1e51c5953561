"""MQTT 5's properties: what goes with a connection, and with every message."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_app.domain import Message


def connect_properties(session_expiry_s: int, max_packet_bytes: int) -> Properties:
    """Ask the broker to keep the session for so long, and to send nothing larger."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has none
    properties.SessionExpiryInterval = session_expiry_s
    properties.MaximumPacketSize = max_packet_bytes
    return properties


def publish_properties(message: Message) -> Any:
    """Say what a message is; returns what paho's `publish` takes."""
    if not message.correlation:
        return _usual(message.content_type, message.schema, message.expiry_s)
    properties = _make(message.content_type, message.schema, message.expiry_s)
    properties.CorrelationData = message.correlation
    return properties


class _Packed:
    """Properties made into bytes once: paho takes longer for that than for all else it does."""

    def __init__(self, properties: Properties) -> None:
        self._packed: bytes = properties.pack()  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        return self._packed


@lru_cache(maxsize=64)
def _usual(content_type: str, schema: str, expiry_s: int | None) -> _Packed:
    return _Packed(_make(content_type, schema, expiry_s))


def _make(content_type: str, schema: str, expiry_s: int | None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = content_type
    if schema:
        properties.UserProperty = ("schema", schema)
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties
