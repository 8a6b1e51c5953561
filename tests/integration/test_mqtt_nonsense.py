"""The MQTT client and peers that behave badly: stand-ins that say what no broker should."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading

import pytest

from tests.mqtt import PATIENCE_S, publishing, record, threads, wait_until

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
        b"\x20\x06\x00\x00\x03\x21\x00\x00",
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
        "connack-that-takes-no-message",
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


def test_closing_on_a_peer_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with publishing(silent.getsockname()[1]) as publisher:
            publisher.offer(record(1))
            link, _ = silent.accept()
            assert link.recv(1) == b"\x10"  # CONNECT
        assert not threads()
        link.close()
