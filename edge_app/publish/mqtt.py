"""The MQTT client: one thread that owns the connection.

`offer` puts a message where the thread finds it and returns. Every connection is a new paho client:
what was in flight when the last one ended is taken from the spool again, so order is decided in one
place, certificates are read afresh, and the protocol version can change from one to the next.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_app.domain import Delivery, Message, MqttState, Received, SpoolState
from edge_app.publish.link import BAD_CREDENTIALS, KEEPALIVE_S, Broker, Retry, new_client
from edge_app.publish.spool import Spool

log = logging.getLogger(__name__)

_WINDOW = 32  # unacknowledged messages in flight; a wait of one round trip for every 32 messages
_VOLATILE_LIMIT = 32
_RECEIVED_LIMIT = 64
_GOODBYE_S = 0.5
_CONNACK_S = 5.0
_UNSUPPORTED_VERSION = "Unsupported protocol version"
_NO_ANSWER = (
    "connected, but it does not answer"  # some brokers do that to a version they do not know
)


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
        self._broker = broker
        self._spool = spool
        self._online, self._offline = online, offline
        self._volatile: deque[Message] = deque(maxlen=_VOLATILE_LIMIT)
        self._subscriptions = subscriptions
        self._on_received = on_received
        self._inbox: deque[Received] = deque(maxlen=_RECEIVED_LIMIT)
        self._states: dict[str, Message] = {}
        self._unsent_states: dict[str, None] = {}  # topics, in order
        self._states_lock = threading.Lock()
        self._in_flight: dict[int, int | None] = {}  # paho's message id: our seq
        self._window = _WINDOW
        self._first_protocol = (
            MQTTProtocolVersion.MQTTv311 if broker.only_3_1_1 else MQTTProtocolVersion.MQTTv5
        )
        self._protocol = self._first_protocol
        self._connected = False
        self._accepted_s = 0.0  # monotonic
        self._refusal = ""
        self._connects = 0
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        spool.on_ready = self._wake
        self._last_trouble = ""
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def offer(self, message: Message) -> None:
        """Take the message; see `domain.Publisher.offer`."""
        if message.delivery is Delivery.SPOOLED:
            self._spool.append(message)
        elif message.delivery is Delivery.STATE:
            with self._states_lock:
                self._states[message.topic] = message
                self._unsent_states[message.topic] = None
        elif self._connected:
            self._volatile.append(message)
        self._wake()

    def state(self) -> tuple[SpoolState, MqttState]:
        return self._spool.state(), MqttState(self._connects)

    def received(self) -> list[Received]:
        taken = []
        while self._inbox:
            taken.append(self._inbox.popleft())
        return taken

    def drain(self, timeout_s: float) -> bool:
        with self._idle:
            return self._idle.wait_for(self._all_delivered, timeout_s)

    def close(self) -> None:
        """Say goodbye if connected, and end the thread; bounded by a second."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake()
        self._thread.join(2 * _GOODBYE_S)
        if self._thread.is_alive():
            log.warning("the MQTT thread is still busy connecting; leaving it")
        else:
            with self._wake_lock:
                os.close(self._wake_fd)
                self._wake_fd = -1

    def _wake(self) -> None:
        """Make the network thread look for work. Safe in every thread."""
        with self._wake_lock:
            if self._wake_fd >= 0:  # else the number may be another file's by now
                os.eventfd_write(self._wake_fd, 1)

    def _all_delivered(self) -> bool:
        with self._states_lock:  # a state on its way is found in one or the other
            waiting = self._unsent_states or self._in_flight or self._spool.state().queued
        return not waiting and not (self._connected and self._volatile)

    # Everything below runs in the network thread.

    def _run(self) -> None:
        retry = Retry()
        while not self._stopping.is_set():
            self._refusal = ""
            held_s = self._connect_and_serve()
            if self._refusal in (_UNSUPPORTED_VERSION, _NO_ANSWER) and self._falls_back():
                continue
            retry = retry.after(held_s, self._refusal)
            self._stopping.wait(retry.jittered_s())

    def _falls_back(self) -> bool:
        if self._protocol == MQTTProtocolVersion.MQTTv311:
            self._protocol = self._first_protocol  # it may be another broker by now
            return False
        self._protocol = MQTTProtocolVersion.MQTTv311
        log.info("the broker does not take MQTT 5; trying 3.1.1")
        return True

    def _connect_and_serve(self) -> float:
        """Hold one connection until it ends; return for how long the broker had accepted it."""
        connects = self._connects
        self._in_flight.clear()
        self._spool.rewind()
        try:
            client = self._client()
            client.connect(self._broker.host, self._broker.port, KEEPALIVE_S)
            self._serve(client)
        except Exception as error:
            # paho 2.1 lets a malformed packet's KeyError, IndexError, struct.error and more escape;
            # this is the thread's outermost frame, and it must outlive whatever a peer sends.
            self._trouble(str(error) or type(error).__name__)
            log.debug("the connection ended with", exc_info=True)
        finally:
            self._connected = False
        return time.monotonic() - self._accepted_s if self._connects > connects else 0.0

    def _client(self) -> paho.Client:
        client = new_client(self._broker, self._protocol)
        client.max_inflight_messages_set(2 * _WINDOW)
        client.will_set(self._offline.topic, self._offline.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _serve(self, client: paho.Client) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_fd, selectors.EVENT_READ)
            link: Any = client.socket()
            if link is None:
                return
            # A second message in flight would wait for the first one's delayed TCP acknowledgement.
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watched = selectors.EVENT_READ
            selector.register(link, watched)
            answer_by = time.monotonic() + _CONNACK_S
            goodbye_at = 0.0
            while client.socket() is not None:
                wanted = selectors.EVENT_READ
                wanted |= selectors.EVENT_WRITE if client.want_write() else 0
                if wanted != watched:
                    selector.modify(link, wanted)
                    watched = wanted
                ready = {key.fileobj for key, _ in selector.select(0.1 if goodbye_at else 1.0)}
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if link in ready and not self._connected and _has_hung_up(link):
                    self._refusal = _NO_ANSWER
                    self._trouble("it hangs up without an answer")
                    return
                if not self._turn(client, link, link in ready):
                    return
                if not self._connected and time.monotonic() > answer_by:
                    self._refusal = _NO_ANSWER
                    self._trouble(_NO_ANSWER)
                    return
                if self._stopping.is_set():
                    if self._connected and not goodbye_at:
                        goodbye_at = time.monotonic() + _GOODBYE_S
                        self._say(client, self._offline)
                    elif not self._in_flight or time.monotonic() > goodbye_at:
                        client.disconnect()
                        return

    def _turn(self, client: paho.Client, link: Any, is_ready: bool) -> bool:
        """Read, hand over, write once; False when the connection has ended."""
        while is_ready:
            if client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS or client.socket() is None:
                return False
            # What the TLS layer has decrypted already does not show as readable.
            is_ready = isinstance(link, ssl.SSLSocket) and link.pending() > 0
        if self._connected and not self._stopping.is_set():
            self._hand_over(client)
        if client.want_write() and client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        return client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS

    def _hand_over(self, client: paho.Client) -> None:
        # Taken off its queue only once it is in flight: `drain` must find it in one or the other.
        with self._states_lock:
            while self._unsent_states and len(self._in_flight) < self._window:
                topic = next(iter(self._unsent_states))
                del self._unsent_states[topic]
                self._say(client, self._states[topic])
        while self._volatile:
            self._say(client, self._volatile.popleft())
        while len(self._in_flight) < self._window:
            taken = self._spool.take()
            if taken is None:
                break
            self._say(client, taken[1], taken[0])
        if self._all_delivered():
            with self._idle:
                self._idle.notify_all()

    def _say(self, client: paho.Client, message: Message, seq: int | None = None) -> None:
        qos = 0 if message.delivery is Delivery.VOLATILE else 1
        properties = None
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has none
            properties.ContentType = message.content_type
            if message.expiry_s is not None:
                properties.MessageExpiryInterval = message.expiry_s
            if message.correlation:
                properties.CorrelationData = message.correlation
        info = client.publish(
            message.topic, message.payload, qos, message.retain, properties=properties
        )
        if qos:
            self._in_flight[info.mid] = seq

    def _trouble(self, reason: str) -> None:
        """Log a failed connection once, until it changes or is over."""
        level = logging.DEBUG if reason == self._last_trouble else logging.WARNING
        log.log(level, "broker %s:%d: %s; trying on", self._broker.host, self._broker.port, reason)
        self._last_trouble = reason

    # paho calls these, from within the calls above.

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:  # a refused connection is not a connection
            self._refusal = str(reason)
            if self._refusal in BAD_CREDENTIALS:
                self._trouble(f"refused: {reason}; check mqtt.username and mqtt.password_file")
            elif self._refusal != _UNSUPPORTED_VERSION:
                self._trouble(f"refused: {reason}")
            return
        # An MQTT 5 broker may take fewer unacknowledged messages, and hangs up on one too many.
        self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        self._accepted_s = time.monotonic()
        self._connects += 1
        self._last_trouble = ""
        log.info("connected to %s:%d", self._broker.host, self._broker.port)
        with self._states_lock:
            self._states[self._online.topic] = self._online
            self._unsent_states.update(dict.fromkeys(self._states))  # the broker may forget them
        self._volatile.clear()  # by now old news
        self._connected = True
        if self._subscriptions:
            client.subscribe([(wanted, 1) for wanted in self._subscriptions])

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        self._inbox.append(
            Received(
                topic=message.topic,
                payload=bytes(message.payload),
                retained=message.retain,
                reply_topic=getattr(properties, "ResponseTopic", ""),
                correlation=getattr(properties, "CorrelationData", b""),
            )
        )
        self._on_received()

    def _on_disconnect(
        self, _client: Any, _data: Any, _flags: Any, _reason: ReasonCode, _properties: Any
    ) -> None:
        if self._connected and not self._stopping.is_set():
            held_s = time.monotonic() - self._accepted_s
            twin = f"; is another client called {self._broker.client_id}?" if held_s < 5 else ""
            self._trouble(f"connection lost after {held_s:.0f} s{twin}")
        self._connected = False

    def _on_publish(
        self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        seq = self._in_flight.pop(mid, None)
        if reason.is_failure:
            self._trouble(f"message refused: {reason}; may this client write to its topics?")
            if seq is not None:
                self._spool.refuse(seq)
        elif seq is not None:
            self._spool.ack(seq)


def _has_hung_up(link: Any) -> bool:
    """Whether the peer has closed a plain connection; a TLS one cannot be asked without reading."""
    return isinstance(link, socket.socket) and not (
        isinstance(link, ssl.SSLSocket) or link.recv(1, socket.MSG_PEEK)
    )
