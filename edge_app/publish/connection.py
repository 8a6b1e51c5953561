"""One connection to the broker, from the attempt to its end. Lives in the network's thread."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_app.domain import Delivery, Message
from edge_app.publish.link import BAD_CREDENTIALS, KEEPALIVE_S, Broker, is_at_end, new_client
from edge_app.publish.outbox import Inbox, Key, Outbox
from edge_app.publish.properties import connect_properties, publish_properties
from edge_app.publish.trouble import Status, explain

log = logging.getLogger(__name__)

# For how long the broker keeps what is sent to us while we are away: docs/mqtt.md says why.
SESSION_EXPIRY_S = 60
# Of what is sent to us. Commands have 4 KiB; a larger one is still to be refused with a reason.
MAX_PACKET_BYTES = 65_536
UNSUPPORTED_VERSION = "Unsupported protocol version"
NO_ANSWER = "no answer"  # of ours; some brokers do that to a version they do not know

_WINDOW = 32  # unacknowledged messages in flight; a wait of one round trip for every 32 messages
_GOODBYE_S = 0.5
_CONNACK_S = 5.0
_LOST_AT_ONCE_S = 5.0
_HEADER_BYTES = 200  # at most, of a PUBLISH besides topic, payload and correlation data
_UNLIMITED_BYTES = 1 << 28  # MQTT's own bound


@dataclass(frozen=True, slots=True)
class Peer:
    """Both ends: where the broker is, and what this client says and asks for.

    `online` is said on every connection; `offline` is the last will, and said at the end.
    """

    broker: Broker
    online: Message
    offline: Message
    subscriptions: Sequence[str] = ()


class Connection:
    """Serves an outbox and an inbox until the connection ends or `stopping` is set.

    `refusal`: why the broker did not accept it, as far as it says. `wake_fd` becomes readable when
    there is something to do.
    """

    def __init__(
        self,
        peer: Peer,
        protocol: MQTTProtocolVersion,
        outbox: Outbox,
        inbox: Inbox,
        status: Status,
        *,
        wake_fd: int,
        stopping: threading.Event,
    ) -> None:
        self.refusal = ""
        self._peer = peer
        self._protocol = protocol
        self._outbox, self._inbox, self._status = outbox, inbox, status
        self._wake_fd = wake_fd
        self._stopping = stopping
        self._client = new_client(peer.broker, protocol, MAX_PACKET_BYTES)
        self._is_accepted = False
        self._accepted_s = 0.0  # monotonic
        self._in_flight: dict[int, tuple[Key, str]] = {}  # with their topics, by paho's message id
        self._window = _WINDOW
        self._largest_bytes = _UNLIMITED_BYTES
        self._is_explained = False
        self._refused_topic = ""

    def hold(self) -> float:
        """Connect and serve; return for how long the broker had accepted the connection."""
        try:
            self._connect()
            self._serve()
            if not (self._is_accepted or self._is_explained or self._stopping.is_set()):
                failure = self._client.failure
                nonsense = "it hangs up without an answer, or its answer is not MQTT"
                self._cannot(explain(failure, self._peer.broker) if failure else nonsense)
        except Exception as error:
            # paho lets a malformed packet's KeyError, IndexError, struct.error and more escape;
            # this is the connection's outermost frame, and its thread must outlive whatever a peer
            # sends.
            self._cannot(explain(error, self._peer.broker))
            log.debug("the connection ended with", exc_info=True)
        finally:
            self._outbox.close()
        return time.monotonic() - self._accepted_s if self._is_accepted else 0.0

    def _cannot(self, reason: str, *, then: str = "trying on") -> None:
        self._is_explained = True
        self._status.cannot(reason, then)

    def _connect(self) -> None:
        client, broker, will = self._client, self._peer.broker, self._peer.offline
        client.max_inflight_messages_set(2 * _WINDOW)
        client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _data, message: self._inbox.put(message)
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            client.connect(broker.host, broker.port, KEEPALIVE_S)
            return
        # A process begins anew: what was meant for the one before, perhaps what it died of, is not
        # for this one. Our own messages need no session: the outbox sends them again.
        is_first = self._status.connects == 0
        wishes = connect_properties(SESSION_EXPIRY_S, MAX_PACKET_BYTES)
        client.connect(
            broker.host, broker.port, KEEPALIVE_S, clean_start=is_first, properties=wishes
        )

    def _serve(self) -> None:
        link: Any = self._client.socket()
        if link is None:  # lost with the first words
            return
        # A second message in flight would wait for the first one's delayed TCP acknowledgement.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        give_up_s = time.monotonic() + _CONNACK_S
        goodbye_by_s = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_fd, selectors.EVENT_READ)
            selector.register(link, selectors.EVENT_READ)
            while self._client.socket() is not None:
                is_readable = self._wait(selector, link, 0.1 if goodbye_by_s else 1.0)
                if not self._is_accepted and is_readable and is_at_end(link):
                    self.refusal = NO_ANSWER
                    self._cannot(explain(ConnectionResetError(), self._peer.broker))
                    return
                if not self._turn(link, is_readable):
                    return
                if not self._is_accepted and time.monotonic() > give_up_s:
                    self.refusal = NO_ANSWER
                    self._cannot("connected, but it does not answer")
                    return
                if self._stopping.is_set():
                    if self._is_accepted and not goodbye_by_s:
                        goodbye_by_s = time.monotonic() + _GOODBYE_S
                        self._say(None, self._peer.offline)
                    elif not self._in_flight or time.monotonic() > goodbye_by_s:
                        self._client.disconnect()
                        return

    def _wait(self, selector: selectors.BaseSelector, link: Any, timeout_s: float) -> bool:
        """Wait for something to do; True when there is something to read."""
        wanted = selectors.EVENT_READ
        wanted |= selectors.EVENT_WRITE if self._client.want_write() else 0
        if wanted != selector.get_key(link).events:
            selector.modify(link, wanted)
        ready = {key.fileobj: events for key, events in selector.select(timeout_s)}
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        return bool(ready.get(link, 0) & selectors.EVENT_READ)

    def _turn(self, link: Any, is_readable: bool) -> bool:
        """Read, hand over, write once; False when the connection has ended."""
        client = self._client
        while is_readable:
            if client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS or client.socket() is None:
                return False
            # What the TLS layer has decrypted already does not show as readable.
            is_readable = isinstance(link, ssl.SSLSocket) and link.pending() > 0
        if self._is_accepted and not self._stopping.is_set():
            while (taken := self._outbox.take(self._window - len(self._in_flight))) is not None:
                self._say(*taken)
            self._outbox.tell_if_empty()
        if client.want_write() and client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        return client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS

    def _say(self, key: Key, message: Message) -> None:
        qos = 0 if message.delivery is Delivery.VOLATILE else 1
        is_5 = self._protocol == MQTTProtocolVersion.MQTTv5
        properties = publish_properties(message) if is_5 else None
        try:
            self._check_size(message)
            info = self._client.publish(
                message.topic, message.payload, qos, message.retain, properties=properties
            )
        except ValueError as error:  # also paho's, of a topic that cannot be published to
            self._status.refused(
                message.topic, f"a message to {message.topic!r} cannot be sent: {error}"
            )
            self._outbox.refuse(key)
        else:
            if qos:
                self._in_flight[info.mid] = key, message.topic

    def _check_size(self, message: Message) -> None:
        """Raises ValueError for what the broker would answer by hanging up."""
        size_bytes = len(message.payload) + len(message.topic) + len(message.correlation)
        if size_bytes + _HEADER_BYTES > self._largest_bytes:
            raise ValueError(
                f"{size_bytes} bytes, and the broker takes {self._largest_bytes} with the header"
            )

    # paho calls these, from within the calls above.

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:  # a refused connection is not a connection
            self.refusal = str(reason)
            self._is_explained = True  # or left to who tries another version
            if self.refusal in BAD_CREDENTIALS:
                self._cannot(
                    f"refused: {reason}; check mqtt.username and mqtt.password_file, or what the "
                    f"broker allows {self._peer.broker.client_id}",
                    then="asking again within a minute",
                )
            elif self.refusal != UNSUPPORTED_VERSION:
                self._cannot(f"refused: {reason}")
            return
        # An MQTT 5 broker may take fewer unacknowledged or smaller messages, and hangs up on one
        # too many.
        self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        self._largest_bytes = getattr(properties, "MaximumPacketSize", _UNLIMITED_BYTES)
        self._is_accepted = True
        self._accepted_s = time.monotonic()
        self._status.accepted()
        self._outbox.open(self._peer.online)
        wanted = self._peer.subscriptions
        if wanted and self._protocol == MQTTProtocolVersion.MQTTv5:
            # As published: to tell who clears a retained command from who gives one.
            how = SubscribeOptions(qos=1, retainAsPublished=True)
            client.subscribe([(topic, how) for topic in wanted])
        elif wanted:
            client.subscribe([(topic, 1) for topic in wanted])

    def _on_subscribe(
        self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        refused = [
            f"{wanted} ({reason})"
            for wanted, reason in zip(self._peer.subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self._status.refused(
                "",
                f"it does not let this client subscribe to {', '.join(refused)}: nobody can "
                "command this device; results are published all the same",
            )

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if not self._is_accepted or self._stopping.is_set():
            return
        held_s = time.monotonic() - self._accepted_s
        says = f": {reason}" if flags.is_disconnect_packet_from_server else ""
        is_twin = held_s < _LOST_AT_ONCE_S or str(reason) == "Session taken over"
        client_id = self._peer.broker.client_id
        why = f"; is another client called {client_id}, or is a message refused?" if is_twin else ""
        if self._refused_topic:  # some versions of mosquitto hang up then
            why = f"; it had refused a message to {self._refused_topic}"
        self._cannot(f"connection lost after {held_s:.0f} s{says}{why}")

    def _on_publish(
        self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        if (sent := self._in_flight.pop(mid, None)) is None:
            return  # volatile: paho tells that it has left, and no broker answers it
        key, topic = sent
        if reason.is_failure:
            self._refused_topic = topic
            self._status.refused(
                topic, f"message to {topic} refused: {reason}; may this client write to it?"
            )
            self._outbox.refuse(key)
        else:
            self._refused_topic = ""  # it did not hang up on that one
            self._status.taken(topic)
            self._outbox.ack(key)
