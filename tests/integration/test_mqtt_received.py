"""What comes in over MQTT, and MQTT 5's properties on what goes out."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_app.domain import Delivery, Message, Received
from edge_app.publish import link
from edge_app.publish.mqtt import MqttPublisher
from edge_app.tools.processes import free_port
from tests.brokers import Mosquitto, mosquitto_running, relaying
from tests.mqtt import PATIENCE_S, TOPICS, publishing, record, wait_until

COMMANDS = "edge-cmd/t/#"
COMMAND = "edge-cmd/t/pause"
CONNACK = bytes([0x20, 3, 0, 0, 0])
CONNACK_3_1_1 = bytes([0x20, 2, 0, 0])


@contextmanager
def somebody(port: int, on_message: Callable[[Any], None] | None = None) -> Iterator[paho.Client]:
    """Be another client, of MQTT 5, while the block lasts; with `on_message` it hears edge/#."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        if on_message is not None:
            client.on_message = lambda _client, _data, message: on_message(message)
            client.subscribe("edge/#", 1)
            assert subscribed.wait(PATIENCE_S)
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def tell(client: paho.Client, payload: bytes, topic: str = COMMAND, **properties: Any) -> None:
    """Publish, and return once the broker has it."""
    wanted = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in properties.items():
        setattr(wanted, name, value)
    client.publish(topic, payload, 1, properties=wanted).wait_for_publish(PATIENCE_S)


def receive(publisher: MqttPublisher, count: int) -> list[Received]:
    found: list[Received] = []

    def is_enough() -> bool:
        found.extend(publisher.received())
        return len(found) >= count

    wait_until(is_enough)
    return found


def wait_until_subscribed(client: paho.Client, publisher: MqttPublisher) -> None:
    """Send until something arrives: nothing tells when a subscription is in force."""

    def arrives() -> bool:
        tell(client, b"are you there?")
        return bool(publisher.received())

    wait_until(arrives)
    tell(client, b"the last of these")
    while receive(publisher, 1)[-1].payload != b"the last of these":
        pass


def test_every_message_says_what_it_is(mosquitto: Mosquitto) -> None:
    heard: dict[str, Any] = {}
    messages = [
        record(1),
        Message(TOPICS.stats, b"{}", Delivery.VOLATILE, retain=True, expiry_s=30),
        Message(TOPICS.snapshot, b"\xff", Delivery.VOLATILE, content_type="image/jpeg"),
        Message(TOPICS.reply, b"{}", Delivery.REPLY, correlation=b"\0 7"),
        Message("edge/else", b"{}", Delivery.STATE, schema=""),
    ]
    with (
        somebody(mosquitto.port, lambda message: heard.update({message.topic: message})),
        publishing(mosquitto.port) as publisher,
    ):
        wait_until(lambda: publisher.state()[1].connects)
        for _ in range(2):  # the second time its properties are known
            for message in messages:
                publisher.offer(message)
            wait_until(lambda: len(heard) == 6)
            properties = {topic: message.properties.json() for topic, message in heard.items()}
            heard.clear()
            publisher.offer(Message(TOPICS.status, b"online", Delivery.STATE))
    ours = {"UserProperty": [("schema", "edge-app/1")]}
    assert properties[TOPICS.result] == {"ContentType": "application/json"} | ours
    assert properties[TOPICS.stats].pop("MessageExpiryInterval") <= 30
    assert properties[TOPICS.snapshot] == {"ContentType": "image/jpeg"} | ours
    assert bytes.fromhex(properties[TOPICS.reply]["CorrelationData"]) == b"\0 7"
    assert properties["edge/else"] == {"ContentType": "application/json"}


def test_a_command_comes_with_how_to_reply(mosquitto: Mosquitto) -> None:
    with (
        publishing(mosquitto.port, subscriptions=[COMMANDS]) as publisher,
        somebody(mosquitto.port) as client,
    ):
        wait_until_subscribed(client, publisher)
        tell(client, b"{}", ResponseTopic="my/answers", CorrelationData=b"\1\2")
        tell(client, b"{}", ResponseTopic="my/#")  # to be refused by whoever serves it
        first, second = receive(publisher, 2)
    assert first == Received(COMMAND, b"{}", False, "my/answers", b"\1\2")
    assert second == Received(COMMAND, b"{}", False, "my/#")


def test_a_command_sent_during_a_short_absence_arrives(mosquitto: Mosquitto) -> None:
    port = free_port()
    with (
        publishing(port, subscriptions=[COMMANDS]) as publisher,
        somebody(mosquitto.port) as client,
    ):
        with relaying(port, mosquitto.port):
            wait_until_subscribed(client, publisher)
        wait_until(lambda: publisher.state()[1].trouble)
        tell(client, b"while away")
        with relaying(port, mosquitto.port):
            assert receive(publisher, 1)[-1].payload == b"while away"
            publisher.close()  # before the relay, which waits for its connections


def test_a_command_to_the_process_before_is_not_for_this_one(mosquitto: Mosquitto) -> None:
    port = free_port()
    with somebody(mosquitto.port) as client:
        with publishing(port, subscriptions=[COMMANDS]) as publisher:
            with relaying(port, mosquitto.port):
                wait_until_subscribed(client, publisher)
            wait_until(lambda: publisher.state()[1].trouble)  # as after kill -9: no goodbye
        tell(client, b"what it died of")
        with publishing(mosquitto.port, subscriptions=[COMMANDS]) as publisher:
            payloads: list[bytes] = []
            while b"hello" not in payloads:
                tell(client, b"hello")
                payloads += [received.payload for received in publisher.received()]
    assert b"what it died of" not in payloads


@pytest.mark.parametrize(("only_3_1_1", "asked"), [(False, (60, 65_536)), (True, None)])
def test_what_is_asked_of_the_broker(only_3_1_1: bool, asked: tuple[int, int] | None) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        publishing(server.getsockname()[1], only_3_1_1=only_3_1_1) as publisher,
    ):
        for is_first in (True, False):
            with server.accept()[0] as peer:
                greeting = peer.recv(1000)
                assert bool(greeting[9] & 2) is (is_first or only_3_1_1)  # a new session
                peer.sendall(CONNACK_3_1_1 if only_3_1_1 else CONNACK)
                wait_until(lambda: publisher.state()[1].trouble is None)
                wait_until(lambda: publisher.state()[1].connects)
            if asked:
                # Keep alive, length of the properties, session expiry, maximum packet size.
                assert greeting[12:23] == struct.pack(">BBIBI", 10, 17, asked[0], 39, asked[1])


def test_too_many_at_once_are_counted_and_said_once(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        publishing(mosquitto.port, subscriptions=[COMMANDS]) as publisher,
        somebody(mosquitto.port) as client,
    ):
        wait_until_subscribed(client, publisher)
        for number in range(100):
            tell(client, b"%d" % number)
        wait_until(lambda: publisher.state()[1].dropped == 36)
        assert [received.payload for received in publisher.received()] == [
            b"%d" % number for number in range(64)
        ]
        tell(client, b"the next")
        assert receive(publisher, 1)[0].payload == b"the next"
    assert caplog.text.count("thrown away unread") == 1


def test_a_giant_is_kept_away_by_the_broker(mosquitto: Mosquitto) -> None:
    with (
        publishing(mosquitto.port, subscriptions=[COMMANDS]) as publisher,
        somebody(mosquitto.port) as client,
    ):
        wait_until_subscribed(client, publisher)
        tell(client, bytes(70_000))
        tell(client, b"small")
        assert receive(publisher, 1)[0].payload == b"small"
        assert publisher.state()[1].connects == 1


def test_a_giant_over_3_1_1_is_not_read(mosquitto: Mosquitto) -> None:
    with (
        publishing(mosquitto.port, subscriptions=[COMMANDS], only_3_1_1=True) as publisher,
        somebody(mosquitto.port) as client,
    ):
        wait_until_subscribed(client, publisher)
        tell(client, bytes(70_000))
        wait_until(lambda: publisher.state()[1].connects == 2)
        wait_until_subscribed(client, publisher)
        assert not [received for received in publisher.received() if len(received.payload) > 99]


def test_a_subscription_that_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_PAUSE_FIRST_S", 0.01)
    plugin = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")
    plugins = [plugin, *Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")]
    rules = {
        "defaultACLAccess": {
            "publishClientSend": True,
            "publishClientReceive": True,
            "subscribe": False,
            "unsubscribe": True,
        }
    }
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    options = [
        "allow_anonymous true",
        f"plugin {next(path for path in plugins if path.exists())}",
        f"plugin_opt_config_file {tmp_path / 'rules.json'}",
    ]
    port = free_port()
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(port, subscriptions=[COMMANDS]) as publisher,
    ):
        for times in (1, 2):
            with relaying(port, mosquitto.port):
                wait_until(lambda: publisher.state()[1].connects == times)  # noqa: B023
                publisher.offer(Message(TOPICS.stats, b"{}", Delivery.VOLATILE))
                publisher.offer(record(times))
                assert publisher.drain(PATIENCE_S)
                trouble = publisher.state()[1].trouble
                assert trouble is not None
                assert "subscribe to edge-cmd/t/# (Not authorized)" in trouble
    assert caplog.text.count("nobody can command this device") == 1


@contextmanager
def publishing_to_one_that_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MqttPublisher]:
    """A broker that takes status and results alone; mosquitto 2.0 hangs up on all else."""
    monkeypatch.setattr(link, "_PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(link, "_PAUSE_MAX_S", 0.05)
    allowed = [f"topic write {topic}\n" for topic in (TOPICS.status, TOPICS.result)]
    (folder / "acl").write_text("".join(allowed))
    options = ["allow_anonymous true", f"acl_file {folder / 'acl'}"]
    with mosquitto_running(folder, options) as mosquitto, publishing(mosquitto.port) as publisher:
        yield publisher


def test_a_refused_message_is_told_with_its_topic(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = [TOPICS.event, "phone/replies"]
    with publishing_to_one_that_refuses(tmp_path, monkeypatch) as publisher:
        for topic in topics * 2:
            publisher.offer(Message(topic, b"{}", Delivery.SPOOLED))
        assert publisher.drain(PATIENCE_S)
        assert publisher.state()[0].dropped == 4
    for topic in topics:
        assert caplog.text.count(f"message to {topic} refused: Not authorized") == 1


def test_a_refused_state_keeps_nothing_else_from_being_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    announcement = Message("homeassistant/device/t/config", b"{}", Delivery.STATE)
    with publishing_to_one_that_refuses(tmp_path, monkeypatch) as publisher:
        publisher.offer(announcement)
        for number in range(100):
            publisher.offer(record(number))
        assert publisher.drain(PATIENCE_S)
        publisher.offer(announcement)  # a newer one has its chance
        wait_until(lambda: announcement.topic in str(publisher.state()[1].trouble))
        publisher.offer(record(100))
        assert publisher.drain(PATIENCE_S)
        assert publisher.state()[0].dropped == 0
    assert f"message to {announcement.topic} refused: Not authorized" in caplog.text


def test_a_message_larger_than_the_broker_takes(tmp_path: Path) -> None:
    options = ["allow_anonymous true", "max_packet_size 2000"]
    with mosquitto_running(tmp_path, options) as mosquitto:
        with publishing(mosquitto.port) as publisher:
            publisher.offer(record(1))
            publisher.offer(Message(TOPICS.result, b"{%s}" % bytes(3000), Delivery.SPOOLED))
            publisher.offer(record(2))
            assert publisher.drain(PATIENCE_S)
            spool, mqtt = publisher.state()
        assert (spool.dropped, mqtt.connects) == (1, 1)
        assert "the broker takes 2000" in str(mqtt.trouble)


def test_a_reply_to_where_nobody_can_publish(mosquitto: Mosquitto) -> None:
    with publishing(mosquitto.port) as publisher:
        publisher.offer(record(1))
        assert publisher.drain(PATIENCE_S)
        publisher.offer(Message("all/#", b"{}", Delivery.REPLY))
        publisher.offer(record(2))
        assert publisher.drain(PATIENCE_S)
        spool, mqtt = publisher.state()
    assert (spool.dropped, mqtt.connects) == (0, 1)


PUBLISH_BAD_TOPIC = b"\x30\x05\x00\x02\xff\xfe\x00"  # neither byte occurs in UTF-8
PUBLISH_NUL_TOPIC = b"\x30\x05\x00\x02a\x00\x00"
PUBLISH_FINE = b"\x30\x05\x00\x01a\x00!"


@pytest.mark.parametrize("odd", [PUBLISH_BAD_TOPIC, PUBLISH_NUL_TOPIC], ids=["not-utf-8", "nul"])
def test_an_odd_topic_does_no_harm(odd: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        publishing(server.getsockname()[1]) as publisher,
        server.accept()[0] as peer,
    ):
        peer.recv(1000)
        peer.sendall(CONNACK + odd + odd + PUBLISH_FINE)
        assert receive(publisher, 1)[-1] == Received("a", b"!")
        assert publisher.state()[1].connects == 1
        expected = 2 if odd == PUBLISH_BAD_TOPIC else 0
        assert publisher.state()[1].dropped == expected
    warnings = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert sum("thrown away" in entry.getMessage() for entry in warnings) == min(expected, 1)


PROPERTIES = {
    "unknown": b"\x30\x06\x00\x01a\x02\x7f\x00",
    "longer-than-the-packet": b"\x30\x05\x00\x01a\x7f\x08",
    "topic-reply-cut": b"\x30\x07\x00\x01a\x03\x08\x00\x09",
    "not-utf-8": b"\x30\x09\x00\x01a\x05\x08\x00\x02\xff\xfe",
    "twice": b"\x30\x08\x00\x01a\x04\x01\x00\x01\x00",
    "length-that-never-ends": b"\x30\x08\x00\x01a\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("packet", PROPERTIES.values(), ids=PROPERTIES)
def test_malformed_properties_end_only_that_connection(
    packet: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_PAUSE_FIRST_S", 0.01)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        publishing(server.getsockname()[1]) as publisher,
        server.accept()[0] as peer,
    ):
        peer.recv(1000)
        peer.sendall(CONNACK + packet)
        peer.shutdown(socket.SHUT_WR)
        with server.accept()[0] as again:
            again.recv(1000)
            again.sendall(CONNACK + PUBLISH_FINE)
            assert receive(publisher, 1)[-1] == Received("a", b"!")
