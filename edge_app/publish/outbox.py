"""What is to be sent, and what came in: where the loop's thread and the network's thread meet."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from edge_app.domain import Delivery, Message, Received
from edge_app.publish.spool import Spool

log = logging.getLogger(__name__)

_VOLATILE_LIMIT = 32
RECEIVED_LIMIT = 64

Key = int | str | None  # whose acknowledgement it is: a number, a state's topic, nobody's
Taken = tuple[Key, Message]


class Outbox:
    """Every message offered and not yet acknowledged, by its class of delivery.

    Like a spool it has a cursor: `take` moves messages from waiting to sent, `ack` forgets them,
    `open` puts what was sent back, and every state with it, for a broker may have forgotten them.
    """

    def __init__(self, spool: Spool) -> None:
        self.is_open = False  # whether a broker has accepted us
        self._spool = spool
        self._passing: deque[Message] = deque(maxlen=_VOLATILE_LIMIT)  # for those there now
        self._states: dict[str, Message] = {}
        self._unsent: dict[str, None] = {}  # topics, in order
        self._unacked: set[str] = set()
        self._lock = threading.Lock()  # of the three above
        self._changed = threading.Condition()  # what `drain` waits for may be so

    def offer(self, message: Message) -> None:
        """Take the message; see `domain.Publisher.offer`."""
        if message.delivery is Delivery.SPOOLED:
            self._spool.append(message)
        elif message.delivery is Delivery.STATE:
            with self._lock:
                self._states[message.topic] = message
                self._unsent[message.topic] = None
        elif self.is_open:
            self._passing.append(message)

    def drain(self, timeout_s: float, *, or_saved: bool) -> bool:
        """Wait until everything was delivered; see `domain.Publisher.drain`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_empty() or (or_saved and not self.is_open and self._spool.is_kept),
                timeout_s,
            )
        return self._is_empty()

    def _is_empty(self) -> bool:
        with self._lock:
            waiting = self._unsent or self._unacked or self._spool.state().queued
        return not waiting and not (self.is_open and self._passing)

    # What follows belongs to the network's thread.

    def open(self, first: Message) -> None:
        """Begin with a new connection: `first`, a state, then everything that is due."""
        with self._lock:
            self._states[first.topic] = first
            self._unacked.clear()
            self._unsent = {first.topic: None} | dict.fromkeys(self._states)
        self._spool.rewind()
        self._passing.clear()  # by now old news
        self.is_open = True

    def close(self) -> None:
        """The connection has ended."""
        self.is_open = False
        with self._changed:
            self._changed.notify_all()

    def take(self, room: int) -> Taken | None:
        """Return the next message to send; one that is acknowledged only while there is `room`."""
        if self._unsent and room > 0:
            with self._lock:
                topic = next(iter(self._unsent))
                del self._unsent[topic]
                self._unacked.add(topic)
                return topic, self._states[topic]
        if self._passing:
            return None, self._passing.popleft()
        return self._spool.take() if room > 0 else None

    def tell_if_empty(self) -> None:
        """Let `drain` know, if it is so."""
        if self._is_empty():
            with self._changed:
                self._changed.notify_all()

    def ack(self, key: Key) -> None:
        """The broker has it."""
        if isinstance(key, int):
            self._spool.ack(key)
        elif key is not None:
            self._settle(key)

    def refuse(self, key: Key) -> None:
        """Give up a message that the broker will never take.

        A state is offered to no further connection, unless there is a newer one: some brokers hang
        up on what they refuse, and it would keep everything else from being sent.
        """
        if isinstance(key, int):
            self._spool.refuse(key)
        elif key is not None:
            self._settle(key)
            with self._lock:
                if key not in self._unsent:
                    self._states.pop(key, None)

    def _settle(self, topic: str) -> None:
        with self._lock:
            self._unacked.discard(topic)


class Inbox:
    """What was sent to this appliance and not read yet: a bounded queue of the oldest."""

    def __init__(self, on_received: Callable[[], None]) -> None:
        """`on_received` is called from the network's thread when there is something new."""
        self.dropped = 0  # thrown away unread: too many at once, or not to be understood
        self._on_received = on_received
        self._waiting: deque[Received] = deque()
        self._is_full = False

    def take_all(self) -> list[Received]:
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def put(self, message: Any) -> None:
        """Take in paho's `MQTTMessage`. Never raises, whatever is in it."""
        try:
            received = _received(message)
        except ValueError as error:
            self.dropped += 1
            level = logging.WARNING if self.dropped == 1 else logging.DEBUG
            log.log(level, "a message was thrown away: %s", error)
            return
        if len(self._waiting) < RECEIVED_LIMIT:
            self._is_full = False
            self._waiting.append(received)
            self._on_received()
            return
        self.dropped += 1
        if not self._is_full:
            self._is_full = True
            log.warning(
                "more than %d messages at once for this device; the rest is thrown away unread",
                RECEIVED_LIMIT,
            )


def _received(message: Any) -> Received:
    """Raises ValueError for a topic that is not UTF-8."""
    return Received(
        topic=message.topic,  # decodes
        payload=bytes(message.payload),
        retained=bool(message.retain),
        reply_topic=getattr(message.properties, "ResponseTopic", ""),
        correlation=getattr(message.properties, "CorrelationData", b""),
    )
