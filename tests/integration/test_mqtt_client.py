"""The MQTT client against real brokers, and against peers that behave badly."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_app.domain import Delivery, Message
from edge_app.publish.spool import Spool
from edge_app.tools.processes import free_port
from tests.brokers import (
    Mosquitto,
    amqtt_running,
    mosquitto_running,
    password_options,
    relaying,
)
from tests.mqtt import PATIENCE_S, TOPICS, ear_at, publishing, record, threads, wait_until
from tests.spools import spool_at


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
from tests.mqtt import publishing
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


def test_a_refused_connection_is_not_a_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = password_options(tmp_path, "me", "right")
    with mosquitto_running(tmp_path, options) as mosquitto:
        with publishing(mosquitto.port, username="me", password="wrong") as publisher:  # noqa: S106
            publisher.offer(record(1))
            wait_until(lambda: "refused: Not authorized" in caplog.text)
            assert "asking again within a minute" in caplog.text
            assert "trying on" not in caplog.text
            assert "mqtt.password_file" in str(publisher.state()[1].trouble)
            assert publisher.state()[1].connects == 0
            assert not publisher.drain(0.01)
            assert publisher.state()[0].queued == 1
        with publishing(mosquitto.port, username="me", password="right") as publisher:  # noqa: S106
            publisher.offer(record(1))
            assert publisher.drain(PATIENCE_S)
    assert "wrong" not in caplog.text


def test_the_end_does_not_wait_for_a_broker_when_the_disk_has_it_all(tmp_path: Path) -> None:
    for_ever_s = 1000.0  # longer than this test may take
    mosquitto = Mosquitto(tmp_path)
    with spool_at(tmp_path / "spool.db") as spool, publishing(mosquitto.port, spool) as publisher:
        publisher.offer(record(1))
        assert not publisher.drain(for_ever_s, or_saved=True)
        mosquitto.start()
        assert publisher.drain(PATIENCE_S)
        mosquitto.freeze()  # as long as it is connected there is hope
        publisher.offer(record(2))
        assert not publisher.drain(0.1, or_saved=True)
        killer = threading.Timer(0.1, mosquitto.kill)
        killer.start()
        assert not publisher.drain(for_ever_s, or_saved=True)
        killer.join()


def test_the_end_waits_for_a_broker_when_no_disk_has_it(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path)
    (tmp_path / "file").touch()
    unusable = tmp_path / "file" / "spool.db"
    with spool_at(unusable) as spool, publishing(mosquitto.port, spool) as publisher:
        publisher.offer(record(1))
        starter = threading.Timer(0.1, mosquitto.start)
        starter.start()
        try:
            assert publisher.drain(PATIENCE_S, or_saved=True)
        finally:
            starter.join()
            mosquitto.kill()


def test_closing_without_a_broker() -> None:
    with publishing(free_port()) as publisher:
        publisher.offer(record(1))
    assert not threads()
    publisher.close()
    publisher.offer(record(2))  # never raises, not even now
    assert publisher.state()[0].queued == 2


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
