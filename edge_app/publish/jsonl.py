"""JSON lines instead of a broker: what would be published, one record a line."""

from __future__ import annotations

import json
import logging
from typing import BinaryIO

from edge_app.domain import Delivery, Message, MqttState, SpoolState
from edge_app.publish.wire import with_seq

log = logging.getLogger(__name__)


class JsonLinesPublisher:
    """Writes each record with its topic in front; see `domain.Publisher`."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._next_seq = 1
        self._closed = False

    def offer(self, message: Message) -> None:
        """Write the record at once, waiting for a reader that is slow.

        When nobody reads any more, or nothing can be written, the rest is dropped.
        """
        payload = message.payload
        if message.delivery is Delivery.SPOOLED:
            payload = with_seq(payload, self._next_seq)
            self._next_seq += 1
        if not payload.startswith(b"{"):
            payload = b'{"payload":%s}' % json.dumps(payload.decode()).encode()
        line = b'{"topic":%s,' % json.dumps(message.topic).encode() + payload[1:] + b"\n"
        if not self._closed:
            try:
                self._out.write(line)
                self._out.flush()
            except (OSError, ValueError) as error:  # ValueError: closed by its owner
                log.warning("cannot write results: %s", error)
                self._closed = True

    def state(self) -> tuple[SpoolState, MqttState]:
        return SpoolState(), MqttState()

    def drain(self, timeout_s: float) -> bool:  # noqa: ARG002
        """Nothing waits: every record was written, or dropped, when it was offered."""
        return True

    def close(self) -> None:
        self._closed = True
