"""Messages that wait for the broker: in order, numbered, bounded, in memory."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import replace

from edge_app.domain import Message, SpoolState
from edge_app.publish.wire import with_seq

log = logging.getLogger(__name__)

_OVERHEAD_BYTES = 400  # of one waiting message in CPython: record, bytes header, dict slot


class Spool:
    """A numbered queue with a cursor: what lies before the cursor is sent but not acknowledged.

    `append` may be called from any thread; the cursor belongs to the network thread. When the queue
    would outgrow `max_bytes` the oldest message goes, and is counted.
    """

    def __init__(self, max_bytes: int, first_seq: int = 1) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[int, Message] = OrderedDict()  # a dict is slow at its front
        self._max_bytes = max_bytes
        self._bytes = 0
        self._dropped = 0
        self._next_seq = first_seq
        self._cursor = first_seq

    def append(self, message: Message) -> int:
        """Number the message and keep it until `ack`. Returns its number."""
        with self._lock:
            seq = self._next_seq
            self._next_seq += 1
            numbered = replace(message, payload=with_seq(message.payload, seq))
            self._waiting[seq] = numbered
            self._bytes += len(numbered.payload) + _OVERHEAD_BYTES
            while self._bytes > self._max_bytes and len(self._waiting) > 1:
                self._drop_oldest()
            return seq

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._waiting))
        self._bytes -= len(self._waiting.pop(oldest).payload) + _OVERHEAD_BYTES
        self._cursor = max(self._cursor, oldest + 1)
        self._dropped += 1
        if self._dropped == 1:
            log.warning("spool is full (%d bytes): dropping the oldest messages", self._max_bytes)

    def take(self) -> tuple[int, Message] | None:
        """Return the oldest message not yet taken, with its number, and move the cursor past it."""
        with self._lock:
            while self._cursor < self._next_seq:
                seq, self._cursor = self._cursor, self._cursor + 1
                if seq in self._waiting:  # not if it was acknowledged before an older one
                    return seq, self._waiting[seq]
            return None

    def ack(self, seq: int) -> None:
        """Forget message `seq`: the broker has it."""
        with self._lock:
            message = self._waiting.pop(seq, None)
            if message is not None:
                self._bytes -= len(message.payload) + _OVERHEAD_BYTES

    def rewind(self) -> None:
        """Move the cursor back to the oldest message kept: none in flight will be acknowledged."""
        with self._lock:
            self._cursor = next(iter(self._waiting), self._next_seq)

    def state(self) -> SpoolState:
        """Count what waits."""
        with self._lock:
            return SpoolState(len(self._waiting), self._bytes, self._dropped)
