"""The MQTT client: one thread that owns the connection.

`offer` puts a message where the thread finds it and returns. Every connection is a new one: what
was in flight when the last one ended is taken from the outbox again, so order is decided in one
place, certificates are read afresh, and the protocol version can change from one to the next.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from paho.mqtt.enums import MQTTProtocolVersion

from edge_app.domain import Message, Received
from edge_app.errors import EdgeAppError
from edge_app.publish.connection import NO_ANSWER, UNSUPPORTED_VERSION, Connection, Peer
from edge_app.publish.link import Broker, Retry
from edge_app.publish.outbox import Inbox, Outbox
from edge_app.publish.spool import Spool
from edge_app.publish.trouble import Status, explain
from edge_app.stats import MqttState, SpoolState

log = logging.getLogger(__name__)

_CLOSE_S = 1.0


class MqttPublisher:
    """Delivers messages to a broker; see `domain.Publisher`."""

    def __init__(
        self,
        broker: Broker,
        spool: Spool,
        online: Message,
        offline: Message,
        *,
        subscriptions: Sequence[str] = (),
        on_received: Callable[[], None] = lambda: None,
    ) -> None:
        """Start connecting. `online` is sent on every connection, `offline` is the last will.

        `on_received` is called from the network's thread when `received` has something new.
        """
        self._peer = Peer(broker, online, offline, subscriptions)
        self._spool = spool
        self._outbox = Outbox(spool)
        self._inbox = Inbox(on_received)
        self._status = Status(broker)
        self._first_protocol = (
            MQTTProtocolVersion.MQTTv311 if broker.only_3_1_1 else MQTTProtocolVersion.MQTTv5
        )
        self._protocol = self._first_protocol
        self._stopping = threading.Event()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        spool.on_ready = self._wake
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def offer(self, message: Message) -> None:
        """Take the message; see `domain.Publisher.offer`."""
        self._outbox.offer(message)
        self._wake()

    def state(self) -> tuple[SpoolState, MqttState]:
        status = self._status
        mqtt = MqttState(status.connects, self._inbox.dropped, status.trouble)
        return self._spool.state(), mqtt

    def received(self) -> list[Received]:
        return self._inbox.take_all()

    def drain(self, timeout_s: float, *, or_saved: bool = False) -> bool:
        return self._outbox.drain(timeout_s, or_saved=or_saved)

    def close(self) -> None:
        """Say goodbye if connected, and end the thread; bounded by a second."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            log.warning("the MQTT thread is still busy connecting; leaving it")
        else:
            with self._wake_lock:
                os.close(self._wake_fd)
                self._wake_fd = -1

    def _wake(self) -> None:
        """Make the network's thread look for work. Safe in every thread."""
        with self._wake_lock:
            if self._wake_fd >= 0:  # else the number may be another file's by now
                os.eventfd_write(self._wake_fd, 1)

    # Everything below runs in the network's thread.

    def _run(self) -> None:
        retry = Retry()
        while not self._stopping.is_set():
            held_s, refusal = self._connect_once()
            if refusal in (UNSUPPORTED_VERSION, NO_ANSWER) and self._falls_back():
                continue
            retry = retry.after(held_s, refusal)
            self._stopping.wait(retry.jittered_s())

    def _connect_once(self) -> tuple[float, str]:
        """Hold one connection; return for how long it was accepted, and why it was not."""
        try:
            connection = Connection(
                self._peer,
                self._protocol,
                self._outbox,
                self._inbox,
                self._status,
                wake_fd=self._wake_fd,
                stopping=self._stopping,
            )
        except EdgeAppError as error:  # its certificate files, which may be right the next time
            self._status.cannot(explain(error, self._peer.broker))
            return 0.0, ""
        return connection.hold(), connection.refusal

    def _falls_back(self) -> bool:
        if self._protocol == MQTTProtocolVersion.MQTTv311:
            self._protocol = self._first_protocol  # it may be another broker by now
            return False
        self._protocol = MQTTProtocolVersion.MQTTv311
        log.info("the broker does not take MQTT 5; trying 3.1.1")
        return True
