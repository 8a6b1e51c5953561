"""The MQTT client against real brokers, and against peers that behave badly."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from edge_app.domain import Delivery, Message
from edge_app.publish import wire
from edge_app.publish.link import Broker
from edge_app.publish.listen import Received, listening
from edge_app.publish.mqtt import MqttPublisher
from edge_app.publish.spool import Spool
from edge_app.tools.processes import free_port
from tests.brokers import (
    Mosquitto,
    amqtt_running,
    mosquitto_running,
    password_options,
    relaying,
)

PATIENCE_S = 30.0
TOPICS = wire.Topics("edge", "t")
ONLINE = wire.status_message(TOPICS, online=True)
OFFLINE = wire.status_message(TOPICS, online=False)


@contextlib.contextmanager
def publishing(port: int, spool: Spool | None = None, **broker: Any) -> Iterator[MqttPublisher]:
    """Run a publisher while the block lasts."""
    where = Broker("127.0.0.1", port, "edge-app-t")
    spool = spool or Spool(64_000_000)
    publisher = MqttPublisher(replace(where, **broker), spool, ONLINE, OFFLINE)
    try:
        yield publisher
    finally:
        publisher.close()


def record(number: int) -> Message:
    return Message(TOPICS.result, b'{"n":%d}' % number, Delivery.SPOOLED)


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for something that nothing reports; the test's time limit ends it."""
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


class Ear:
    """What a subscriber of everything hears, in order."""

    def __init__(self, arrived: Any) -> None:
        self._arrived = arrived
        self.heard: list[Received] = []

    def listen_until(self, is_enough: Callable[[], object]) -> None:
        while not is_enough():
            received = self._arrived.get(timeout=PATIENCE_S)
            if received is None:  # the broker is gone
                return
            self.heard.append(received)

    def listen_until_record(self, number: int) -> None:
        last = b'"n":%d}' % number
        self.listen_until(lambda: self.heard and self.heard[-1][1].endswith(last))

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for heard, payload in self.heard if heard == topic]

    def results(self) -> list[dict[str, int]]:
        return [json.loads(payload) for payload in self.payloads(TOPICS.result)]

    def numbers(self) -> list[int]:
        return [result["n"] for result in self.results()]


@contextlib.contextmanager
def ear_at(port: int) -> Iterator[Ear]:
    broker = Broker("127.0.0.1", port, f"ear-{time.monotonic_ns()}")
    with listening(broker, ["edge/#"]) as arrived:
        yield Ear(arrived)


def first_times(numbers: list[int]) -> list[int]:
    """Return `numbers` without what was heard before: delivery is at least once."""
    return list(dict.fromkeys(numbers))


def test_results_arrive_in_order_and_numbered(mosquitto: Mosquitto) -> None:
    with ear_at(mosquitto.port) as ear, publishing(mosquitto.port) as publisher:
        for number in range(500):
            publisher.offer(record(number))
        assert publisher.drain(PATIENCE_S)
        ear.listen_until_record(499)
        assert ear.numbers() == list(range(500))
        assert [result["seq"] for result in ear.results()] == list(range(1, 501))
        spool, mqtt = publisher.state()
        assert (spool.queued, spool.bytes, spool.dropped, mqtt.connects) == (0, 0, 0, 1)


def test_nothing_is_lost_when_the_broker_is_killed_under_load(tmp_path: Path) -> None:
    # Without a limit mosquitto passes a message on before it acknowledges it: what it has
    # acknowledged when it dies, the ear can hear.
    options = ["allow_anonymous true", "max_inflight_messages 0"]
    port = free_port()  # a way to the broker that opens only when the ear listens
    with mosquitto_running(tmp_path, options) as mosquitto, publishing(port) as publisher:
        with ear_at(mosquitto.port) as before, relaying(port, mosquitto.port):
            for number in range(3000):
                publisher.offer(record(number))
            before.listen_until(lambda: len(before.heard) >= 300)
            mosquitto.freeze()
            assert not publisher.drain(0.3)  # now everything acknowledged is known here
            acknowledged = 3000 - publisher.state()[0].queued
            before.listen_until(lambda: len(before.heard) > acknowledged)  # and the status
            mosquitto.kill()
        assert publisher.state()[0].queued > 0, "killed too late to show anything"
        for number in range(3000, 3500):
            publisher.offer(record(number))
        mosquitto.start()
        with ear_at(mosquitto.port) as after, relaying(port, mosquitto.port):
            after.listen_until_record(3499)
            assert publisher.drain(PATIENCE_S)
            publisher.close()  # first, or the way would not close
    assert first_times(before.numbers() + after.numbers()) == list(range(3500))
    assert after.numbers() == sorted(after.numbers())
    assert publisher.state()[1].connects == 2


def test_a_broker_that_hangs_blocks_nobody(mosquitto: Mosquitto) -> None:
    with publishing(mosquitto.port) as publisher, ear_at(mosquitto.port) as ear:
        wait_until(lambda: publisher.state()[1].connects == 1)
        mosquitto.freeze()
        for number in range(10_000):
            publisher.offer(record(number))
        assert not publisher.drain(0.01)
        assert publisher.state()[0].queued == 10_000
        mosquitto.thaw()
        ear.listen_until_record(9_999)
        assert ear.numbers() == list(range(10_000))


def test_messages_wait_for_a_broker_that_is_not_there(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path)
    with publishing(mosquitto.port) as publisher:
        for number in range(10_000):
            publisher.offer(record(number))
        assert publisher.state()[0].queued == 10_000
        assert not publisher.drain(0.01)
        mosquitto.start()
        try:
            assert publisher.drain(PATIENCE_S)
            assert publisher.state()[0].queued == 0
        finally:
            mosquitto.kill()


def test_a_full_spool_gives_up_the_oldest(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path)
    with publishing(mosquitto.port, Spool(max_bytes=50_000)) as publisher:
        for number in range(1000):
            publisher.offer(record(number))
        spool = publisher.state()[0]
        assert spool.dropped > 0
        assert spool.queued + spool.dropped == 1000
        assert spool.bytes <= 50_000
        mosquitto.start()
        try:
            with ear_at(mosquitto.port) as ear:
                publisher.offer(record(1000))
                ear.listen_until_record(1000)
        finally:
            mosquitto.kill()
        numbers = ear.numbers()
        assert numbers == list(range(numbers[0], 1001))
        assert numbers[0] >= spool.dropped


def test_online_is_retained_and_a_clean_end_says_offline(mosquitto: Mosquitto) -> None:
    with publishing(mosquitto.port) as publisher:
        assert publisher.drain(PATIENCE_S)
        wait_until(lambda: publisher.state()[1].connects == 1)
        with ear_at(mosquitto.port) as ear:  # comes later, and learns it all the same
            ear.listen_until(lambda: ear.payloads(TOPICS.status))
            assert ear.payloads(TOPICS.status) == [b"online"]
            publisher.close()
            ear.listen_until(lambda: len(ear.heard) == 2)
            assert ear.payloads(TOPICS.status) == [b"online", b"offline"]
    with ear_at(mosquitto.port) as late:
        late.listen_until(lambda: late.heard)
        assert late.payloads(TOPICS.status) == [b"offline"]


def test_the_last_will_says_offline_when_the_process_is_killed(mosquitto: Mosquitto) -> None:
    program = f"""
from edge_app.publish.link import Broker
from tests.integration.test_mqtt_client import publishing
with publishing({mosquitto.port}) as publisher:
    while not publisher.state()[1].connects:
        publisher.drain(0.01)
    print("up", flush=True)
    input()
"""
    with ear_at(mosquitto.port) as ear:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            ear.listen_until(lambda: ear.payloads(TOPICS.status))
            process.send_signal(signal.SIGKILL)
            ear.listen_until(lambda: len(ear.payloads(TOPICS.status)) == 2)
        assert ear.payloads(TOPICS.status) == [b"online", b"offline"]


def test_states_are_said_again_after_a_restart(mosquitto: Mosquitto) -> None:
    info = Message(TOPICS.info, b'{"v":1}', Delivery.STATE, retain=True)
    newer = Message(TOPICS.info, b'{"v":2}', Delivery.STATE, retain=True)
    with publishing(mosquitto.port) as publisher:
        publisher.offer(info)
        publisher.offer(newer)
        wait_until(lambda: publisher.state()[1].connects == 1)
        assert publisher.drain(PATIENCE_S)
        mosquitto.kill()  # it stores nothing
        mosquitto.start()
        wait_until(lambda: publisher.state()[1].connects == 2)
        with ear_at(mosquitto.port) as ear:
            ear.listen_until(lambda: len({topic for topic, _ in ear.heard}) == 2)
            assert ear.payloads(TOPICS.info)[-1] == b'{"v":2}'
            assert ear.payloads(TOPICS.status)[-1] == b"online"


def test_volatile_messages_are_dropped_while_offline(tmp_path: Path) -> None:
    stats = Message(TOPICS.stats, b'{"n":1}', Delivery.VOLATILE, retain=True, expiry_s=30)
    mosquitto = Mosquitto(tmp_path)
    with publishing(mosquitto.port) as publisher:
        publisher.offer(stats)
        mosquitto.start()
        try:
            with ear_at(mosquitto.port) as ear:
                wait_until(lambda: publisher.state()[1].connects == 1)
                publisher.offer(record(1))
                ear.listen_until(ear.numbers)
                assert ear.payloads(TOPICS.stats) == []
                publisher.offer(stats)
                ear.listen_until(lambda: ear.payloads(TOPICS.stats))
        finally:
            mosquitto.kill()


def test_a_broker_without_mqtt_5(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with amqtt_running() as port, ear_at(port) as ear, publishing(port) as publisher:
        for number in range(50):
            publisher.offer(record(number))
        assert publisher.drain(PATIENCE_S)
        ear.listen_until_record(49)
        assert ear.numbers() == list(range(50))
    assert "3.1.1" in caplog.text


def test_a_broker_that_hangs_up_on_mqtt_5() -> None:
    greetings: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up_twice() -> None:
            for _ in range(2):
                peer, _address = server.accept()
                greetings.append(peer.recv(64))
                peer.close()

        thread = threading.Thread(target=hang_up_twice)
        thread.start()
        with publishing(server.getsockname()[1]):
            thread.join()
    versions = [greeting[greeting.index(b"MQTT") + 4] for greeting in greetings]
    assert versions == [5, 4]


def test_a_refused_connection_is_not_a_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = password_options(tmp_path, "me", "right")
    with mosquitto_running(tmp_path, options) as mosquitto:
        with publishing(mosquitto.port, username="me", password="wrong") as publisher:  # noqa: S106
            publisher.offer(record(1))
            wait_until(lambda: "refused: Not authorized" in caplog.text)
            assert publisher.state()[1].connects == 0
            assert not publisher.drain(0.01)
            assert publisher.state()[0].queued == 1
        with publishing(mosquitto.port, username="me", password="right") as publisher:  # noqa: S106
            publisher.offer(record(1))
            assert publisher.drain(PATIENCE_S)
    assert "wrong" not in caplog.text


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_options(folder: Path, authority: trustme.CA, *names: str) -> list[str]:
    certificate = authority.issue_cert(*names)
    key, chain = folder / "server.key", folder / "server.pem"
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return ["allow_anonymous true", f"certfile {chain}", f"keyfile {key}"]


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, authority: trustme.CA) -> None:
    options = tls_options(tmp_path, authority, "localhost")
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(
            mosquitto.port, host="localhost", tls=True, ca_file=str(tmp_path / "ca.pem")
        ) as publisher,
    ):
        for number in range(500):
            publisher.offer(record(number))
        assert publisher.drain(PATIENCE_S)
        assert publisher.state()[1].connects == 1


def test_tls_with_a_certificate_of_the_devices_own(tmp_path: Path, authority: trustme.CA) -> None:
    options = tls_options(tmp_path, authority, "localhost")
    options += [f"cafile {tmp_path / 'ca.pem'}", "require_certificate true"]
    device = authority.issue_cert("edge-app-t")
    device.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "device.pem"))
    files: dict[str, Any] = {"ca_file": str(tmp_path / "ca.pem"), "tls": True, "host": "localhost"}
    own: dict[str, Any] = {name: str(tmp_path / "device.pem") for name in ("cert_file", "key_file")}
    with mosquitto_running(tmp_path, options) as mosquitto:
        with publishing(mosquitto.port, **files, **own) as publisher:
            publisher.offer(record(1))
            assert publisher.drain(PATIENCE_S)
        with publishing(mosquitto.port, **files) as publisher:
            publisher.offer(record(1))
            wait_until(lambda: "required" in mosquitto.log() or "did not return" in mosquitto.log())
            assert publisher.state()[1].connects == 0


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param("Hostname mismatch", id="wrong-host-name"),
        pytest.param("unable to get local issuer certificate", id="unknown-authority"),
    ],
)
# paho leaves the socket of a failed handshake to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_tls_to_somebody_else(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    is_known = reason == "Hostname mismatch"
    options = tls_options(tmp_path, authority, "broker.example" if is_known else "localhost")
    ca_file = str(tmp_path / "ca.pem") if is_known else ""
    with (
        mosquitto_running(tmp_path, options) as mosquitto,
        publishing(mosquitto.port, host="localhost", tls=True, ca_file=ca_file) as publisher,
    ):
        publisher.offer(record(1))
        wait_until(lambda: reason in caplog.text)
        spool, mqtt = publisher.state()
        assert (spool.queued, mqtt.connects) == (1, 0)
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert all(warning.startswith(f"broker localhost:{mosquitto.port}") for warning in warnings)


def test_closing_without_a_broker() -> None:
    with publishing(free_port()) as publisher:
        publisher.offer(record(1))
    assert not threads()
    publisher.close()
    publisher.offer(record(2))  # never raises, not even now
    assert publisher.state()[0].queued == 2


def test_closing_on_a_peer_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with publishing(silent.getsockname()[1]) as publisher:
            publisher.offer(record(1))
            link, _ = silent.accept()
            assert link.recv(1) == b"\x10"  # CONNECT
        assert not threads()
        link.close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mqtt"]


CONNACK = bytes([0x20, 3, 0, 0, 0])
CONNACK_FOR_3 = bytes([0x20, 6, 0, 0, 3, 0x21, 0, 3])  # ReceiveMaximum = 3


def test_no_more_in_flight_than_the_broker_takes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        with publishing(server.getsockname()[1]) as publisher:
            for number in range(20):
                publisher.offer(record(number))
            link, _ = server.accept()
            with link:
                link.settimeout(PATIENCE_S)
                link.recv(1000)
                link.sendall(CONNACK_FOR_3)
                most, total = 0, 0
                stream = b""
                while total < 21:  # and the status
                    # All it sends of its own accord: until it is silent for a while.
                    while not stream or select.select([link], [], [], 0.05)[0]:
                        stream += link.recv(65_536)
                    ids, stream = message_ids(stream)
                    most, total = max(most, len(ids)), total + len(ids)
                    for message_id in ids:
                        link.sendall(struct.pack(">BBH", 0x40, 2, message_id))
                assert publisher.drain(PATIENCE_S)
    assert most == 3


def message_ids(stream: bytes) -> tuple[list[int], bytes]:
    """Return the ids of the whole QoS 1 PUBLISH packets at the start, and what follows them."""
    ids = []
    while len(stream) >= 2:
        assert stream[0] & 0xF0 == 0x30
        assert stream[1] < 0x80  # a length in one byte is all that is sent here
        end = 2 + stream[1]
        if len(stream) < end:
            break
        (topic_length,) = struct.unpack_from(">H", stream, 2)
        ids.append(struct.unpack_from(">H", stream, 4 + topic_length)[0])
        stream = stream[end:]
    return ids, stream


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n" + b"." * 100,
        b"\x20\x00",
        b"\x20\x03\x00\x00\x7f",
        b"\x20\x05\x00\x00\x02\xff\xff",
        CONNACK + b"\x40\x03\x00\x01\x01",
        CONNACK + b"\x40\x01\x00",
        CONNACK + b"\x30\x04\x00\xff\x61\x62",
        CONNACK + b"\xff\xff\xff\xff\xff\xff",
        CONNACK + b"\xe0\x02\x77\x00",
    ],
    ids=[
        "http",
        "empty-connack",
        "connack-cut-in-its-properties",
        "connack-with-unknown-property",
        "puback-with-unknown-reason",
        "puback-too-short",
        "publish-cut-in-its-topic",
        "no-mqtt-at-all",
        "disconnect-with-unknown-reason",
    ],
)
def test_nonsense_from_a_peer_ends_only_that_connection(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        with publishing(server.getsockname()[1]) as publisher:
            with server.accept()[0] as link:
                link.recv(1000)
                link.sendall(answer)
                with contextlib.suppress(OSError):  # it may have hung up by now
                    link.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while link.recv(1000):
                        pass
            before = publisher.state()[1].connects
            with server.accept()[0] as link:  # it comes again
                link.recv(1000)
                link.sendall(CONNACK)
                wait_until(lambda: publisher.state()[1].connects == before + 1)


def test_offers_from_a_busy_loop_while_the_broker_comes_and_goes(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path)
    info = Message(TOPICS.info, b"{}", Delivery.STATE, retain=True)
    stats = Message(TOPICS.stats, b"{}", Delivery.VOLATILE)
    with publishing(mosquitto.port) as publisher:
        for _ in range(3):
            connects = publisher.state()[1].connects
            mosquitto.start()
            wait_until(lambda: publisher.state()[1].connects > connects)  # noqa: B023
            for number in range(200):
                publisher.offer(record(number))
                publisher.offer(info)
                publisher.offer(stats)
            mosquitto.kill()
        mosquitto.start()
        try:
            assert publisher.drain(PATIENCE_S)
        finally:
            mosquitto.kill()
        assert publisher.state()[0].queued == 0
