"""The spool's promises, kept by real processes, a real broker and kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.publish import single

from edge_app.publish import link, wire
from edge_app.publish.link import Broker
from edge_app.publish.listen import listening
from edge_app.publish.mqtt import MqttPublisher
from edge_app.tools.processes import free_port
from tests.brokers import Mosquitto, relaying
from tests.integration.test_appliance import (
    appliance,
    ear_at,
    finish,
    wait_for_line,
    write_config,
)
from tests.spools import TOPICS, events, numbers, record, spool_at, unexplained, wait_until

PATIENCE_S = 30.0
IS_SOAK = "SOAK_FAULTS" in os.environ
ONLINE = wire.status_message(TOPICS, online=True)
OFFLINE = wire.status_message(TOPICS, online=False)


class Consumer:
    """What a consumer of results and events keeps: each number once."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Any]] = {}
        self.order: list[int] = []
        self._markers = self._marker = 0

    @contextlib.contextmanager
    def listening(self, port: int) -> Iterator[Callable[..., None]]:
        """Listen while the block lasts; yields what hears until a condition holds."""
        filters = ["edge/+/result", "edge/+/event"]
        broker = Broker("127.0.0.1", port, f"consumer-{free_port()}")
        with listening(broker, filters) as arrived:

            def hear_until(is_enough: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
                while not is_enough():
                    received = arrived.get(timeout=patience_s)
                    assert received is not None, "the broker closed the connection"
                    self.keep(received[1])

            yield hear_until
            while not arrived.empty():
                if (received := arrived.get()) is not None:
                    self.keep(received[1])

    def hear_the_rest(self, port: int, hear_until: Callable[..., None]) -> None:
        """Hear what the broker has acknowledged by now: it passes things on one after the other."""
        self._markers += 1
        marker = {"marker": self._markers}
        single("edge/t/event", json.dumps(marker), 1, hostname="127.0.0.1", port=port)
        hear_until(lambda: self._marker == self._markers)

    def keep(self, payload: bytes) -> None:
        message = json.loads(payload)
        if "marker" in message:
            self._marker = message["marker"]
        elif message["seq"] not in self.kept:
            self.kept[message["seq"]] = message
            self.order.append(message["seq"])

    def payloads(self) -> list[dict[str, Any]]:
        return list(self.kept.values())


@contextlib.contextmanager
def offering(config: Path, rate_hz: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.spool_process", str(config), str(rate_hz)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_kill_9_at_any_instant_leaves_no_number_unexplained(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    config = write_config(tmp_path, port=mosquitto.port, spool=str(tmp_path / "spool.db"))
    consumer, chance = Consumer(), random.Random(5)
    offered: list[int] = []
    for life in range(50 if IS_SOAK else 15):
        with consumer.listening(mosquitto.port) as hear_until, offering(config, 400) as process:
            assert process.stdout is not None
            before = len(consumer.kept)
            hear_until(lambda: len(consumer.kept) > before + 3)  # noqa: B023
            is_frozen = life % 3 == 2
            if is_frozen:
                mosquitto.freeze()
            lines = chance.randrange(1, 900 if is_frozen else 100)
            ours = [int(process.stdout.readline()) for _ in range(lines)]
            process.kill()
            out, _ = process.communicate()
            ours += [int(line) for line in out.split()]
            if is_frozen:
                mosquitto.thaw()
            consumer.hear_the_rest(mosquitto.port, hear_until)
        # The promise is one second; a busy machine may take its time to write.
        offered += [n for n in ours if n < ours[-1] - 1.5e9]
    with consumer.listening(mosquitto.port) as hear_until, offering(config, 400) as process:
        before = len(consumer.kept)
        hear_until(lambda: numbers(consumer.payloads())[-1] > ours[-1])
        process.terminate()
        process.wait()
    assert unexplained(consumer.payloads()) == []
    assert consumer.order == sorted(consumer.order)
    assert len(events(consumer.payloads(), "spool_gap")) >= 10
    assert len(offered) > 50
    assert set(offered) <= set(numbers(consumer.payloads()))


def test_kill_9_of_the_whole_appliance(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(
        tmp_path, port=mosquitto.port, camera="fps = 30", spool=str(tmp_path / "spool.db")
    )
    consumer = Consumer()
    lives, chance = 50 if IS_SOAK else 3, random.Random(9)
    for _ in range(lives):
        with consumer.listening(mosquitto.port) as hear_until:
            with appliance(config):  # it ends with kill -9
                enough = len(consumer.kept) + chance.randrange(3, 40)
                hear_until(lambda: len(consumer.kept) >= enough)  # noqa: B023
            consumer.hear_the_rest(mosquitto.port, hear_until)
    assert unexplained(consumer.payloads()) == []
    assert consumer.order == sorted(consumer.order)
    assert len(events(consumer.payloads(), "spool_gap")) == lives - 1


def test_sigterm_loses_nothing_and_skips_no_number(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(
        tmp_path, port=mosquitto.port, camera="fps = 30", spool=str(tmp_path / "spool.db")
    )
    consumer = Consumer()
    with appliance(config) as process, consumer.listening(mosquitto.port) as hear_until:
        hear_until(lambda: len(consumer.kept) > 10)
        mosquitto.kill()
        wait_for_line(process, "refused")
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
        assert code == 0, err
    mosquitto.start()
    with consumer.listening(mosquitto.port) as hear_until, appliance(config) as process:
        hear_until(lambda: len(consumer.kept) > 40)
        process.send_signal(signal.SIGTERM)
        finish(process)
    assert consumer.order == list(range(1, consumer.order[-1] + 1))
    assert events(consumer.payloads()) == []


def test_an_sd_card_sees_no_writes_while_the_broker_answers(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    config = write_config(
        tmp_path, port=mosquitto.port, camera="fps = 30", spool=str(tmp_path / "spool.db")
    )
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: len(ear.results()) > 5)
        before = written_bytes(process.pid)
        ear.hear_until(lambda ear: len(ear.results()) > 95)  # three seconds
        assert written_bytes(process.pid) == before
        mosquitto.freeze()
        wait_until(lambda: written_bytes(process.pid) > before)
        mosquitto.thaw()


def written_bytes(pid: int) -> int:
    found = re.search(r"^write_bytes: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_a_hundred_thousand_wait_for_the_broker(tmp_path: Path) -> None:
    mosquitto = Mosquitto(tmp_path)
    consumer = Consumer()
    broker = Broker("127.0.0.1", mosquitto.port, "edge-app-t")
    # Offered faster than any disk takes them, so memory must hold what a camera never makes.
    with spool_at(tmp_path / "spool.db", memory_bytes=100_000_000, tick_s=0.4) as spool:
        publisher = MqttPublisher(broker, spool, ONLINE, OFFLINE)
        try:
            for number in range(100_000):
                publisher.offer(record(number, 100))
            assert publisher.state()[0].queued == 100_000
            mosquitto.start()
            with consumer.listening(mosquitto.port) as hear_until:
                hear_until(lambda: consumer.kept)
                for number in range(100_000, 100_500):  # behind them, while they go out
                    publisher.offer(record(number, 100))
                hear_until(lambda: len(consumer.kept) == 100_500)
            assert publisher.drain(PATIENCE_S)
        finally:
            publisher.close()
            mosquitto.kill()
    kept = numbers(consumer.payloads())
    assert kept == list(range(100_500))


def test_a_broker_that_dies_fifty_times_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_PAUSE_FIRST_S", 0.02)
    monkeypatch.setattr(link, "_STABLE_S", 0.0)  # back-off stays at its first step
    consumer, port, offered = Consumer(), free_port(), 0
    # A broker that dies must not take along what it has acknowledged: it passes on everything at
    # once, instead of twenty messages that its subscriber has not acknowledged yet.
    options = ["allow_anonymous true", "max_inflight_messages 0"]
    mosquitto = Mosquitto(tmp_path, options)
    with spool_at(tmp_path / "spool.db", tick_s=0.05) as spool:
        publisher = MqttPublisher(Broker("127.0.0.1", port, "edge-app-t"), spool, ONLINE, OFFLINE)
        try:
            for _ in range(50):
                for number in range(offered, offered + 400):
                    publisher.offer(record(number))
                offered += 400
                mosquitto.start()
                # Nobody publishes before the consumer listens: the relay opens after it.
                with consumer.listening(mosquitto.port) as hear_until:
                    with relaying(port, mosquitto.port):
                        before = len(consumer.kept)
                        hear_until(lambda: len(consumer.kept) > before + 300)  # noqa: B023
                    # The link is cut in full flow. What the broker has acknowledged it passes on
                    # before it dies; a broker without storage would take it along. Once the
                    # publisher knows of the cut, no acknowledgement is on its way any more.
                    wait_until(lambda: publisher.state()[1].trouble)
                    hear_until(lambda: len(consumer.kept) >= offered - spool.state().queued)  # noqa: B023
                mosquitto.kill()
            mosquitto.start()
            with consumer.listening(mosquitto.port) as hear_until, relaying(port, mosquitto.port):
                hear_until(lambda: len(consumer.kept) == offered)
                assert publisher.drain(PATIENCE_S)
                publisher.close()  # before the relay, which waits for its connections
        finally:
            publisher.close()
            mosquitto.kill()
    assert consumer.order == list(range(1, offered + 1))
    assert numbers(consumer.payloads()) == list(range(offered))
