"""JSON lines instead of a broker: what would be published, one record a line."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from edge_app.domain import Delivery, Message, Received
from edge_app.publish.wire import with_seq
from edge_app.stats import MqttState, SpoolState

log = logging.getLogger(__name__)

_MAX_BYTES = 16_000_000
_JOIN_S = 0.5


class JsonLinesPublisher:
    """Writes each record with its topic in front; see `domain.Publisher`.

    A thread writes, since a pipe that nobody reads blocks whoever does. When more than `max_bytes`
    wait the oldest records go; once nothing can be written any more all do. Both are counted.
    `on_reader_gone` is called from that thread when nobody will ever read.
    """

    def __init__(
        self,
        out: BinaryIO,
        max_bytes: int = _MAX_BYTES,
        on_reader_gone: Callable[[], None] = lambda: None,
    ) -> None:
        # Not through a buffer: its lock, held in a blocked write, aborts the interpreter's exit.
        self._out = getattr(out, "raw", out)
        self._max_bytes = max_bytes
        self._on_reader_gone = on_reader_gone
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()  # the first one is being written
        self._bytes = 0
        self._dropped = 0
        self._overflowed = False
        self._ended = False
        self._next_seq = 1
        self._thread = threading.Thread(target=self._write_all, name="json-lines", daemon=True)
        self._thread.start()

    def offer(self, message: Message) -> None:
        payload = message.payload
        if message.delivery is Delivery.SPOOLED:
            payload = with_seq(payload, self._next_seq)
            self._next_seq += 1
        line = b'{"topic":%s,' % json.dumps(message.topic).encode() + payload[1:] + b"\n"
        with self._changed:
            if self._ended:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._bytes += len(line)
            while self._bytes > self._max_bytes and len(self._waiting) > 1:
                self._drop_oldest()
            self._changed.notify_all()

    def _drop_oldest(self) -> None:
        self._bytes -= len(self._waiting[1])
        del self._waiting[1]
        self._dropped += 1
        if not self._overflowed:
            self._overflowed = True
            log.warning("nobody reads the results: dropping the oldest of %d bytes", self._bytes)

    def _write_all(self) -> None:
        """Thread: write what waits until `close`, or until nothing can be written any more."""
        while (line := self._first()) is not None:
            try:
                self._write(line)
            except (OSError, ValueError) as error:  # ValueError: closed by its owner
                log.warning("cannot write results: %s", error)
                self._end()
                if isinstance(error, BrokenPipeError):
                    self._on_reader_gone()
                return
            with self._changed:
                if not self._ended:
                    self._bytes -= len(self._waiting.popleft())
                self._changed.notify_all()

    def _first(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            return None if self._ended else self._waiting[0]

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            written = self._out.write(left)
            if not written:
                raise BlockingIOError("the output does not wait for its reader")
            left = left[written:]

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._dropped += len(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()

    def state(self) -> tuple[SpoolState, MqttState]:
        """Count what waits for the reader."""
        with self._changed:
            return SpoolState(len(self._waiting), self._bytes, self._dropped), MqttState()

    def received(self) -> list[Received]:
        """Return nothing: stdout takes no messages."""
        return []

    def drain(self, timeout_s: float, *, or_saved: bool = False) -> bool:  # noqa: ARG002
        """Wait until nothing waits any more: it was written, or dropped, which `state` counts."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, max(0.0, timeout_s))

    def close(self) -> None:
        """Drop what waits; a write that blocks is left behind."""
        self._end()
        self._thread.join(_JOIN_S)
