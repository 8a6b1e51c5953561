"""The bench's rows on the spool: real disk, real broker, in a process of its own for its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from edge_app.appliance import SWITCH_INTERVAL_S
from edge_app.domain import Event, Label, Message, Result, Timing
from edge_app.errors import EdgeAppError
from edge_app.publish import wire
from edge_app.publish.keeper import BLOCK, Keeper
from edge_app.publish.link import Broker
from edge_app.publish.mqtt import MqttPublisher
from edge_app.publish.spool import Spool
from edge_app.publishers import MEMORY_MAX_BYTES
from edge_app.sensors.clock import read_clock
from edge_app.tools import bench_rig as rig
from edge_app.tools.bench_figures import Figure, judged

QUEUED_A_SECOND = 100_000  # so many messages are queued for each second of the bench's length
_FILE_BYTES = 2_000_000_000
_PATIENCE_S = 120.0
_WAITING = 256  # of what is sent online: acknowledged long before it would go to the disk
_RATE_HZ = 30
_ROUNDS = 4

_TOPICS = wire.Topics("edge", "bench-spool")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run gave; bytes are the process's own (/proc/self/io write_bytes)."""

    count: int
    message_bytes: int
    spooled_hz: float
    offline_bytes: float
    growth_mb: float
    replayed_hz: float
    replay_share: float
    online_count: int
    online_bytes: float


def figures(folder: Path, broker: Broker, seconds: float) -> list[Figure]:
    """Queue, save and replay messages for `seconds` a part."""
    count = max(10_000, int(seconds * QUEUED_A_SECOND))
    command = [sys.executable, "-m", __name__, str(folder), str(broker.port)]
    command += [str(count), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeAppError(f"measuring the spool failed: {done.stderr.strip()[-300:]}")
    return rows(Measured(**json.loads(done.stdout)))


def rows(found: Measured) -> list[Figure]:
    """Turn what was measured into the report's rows."""
    each = f"results of {found.message_bytes} bytes"
    found_rows = [
        Figure("spooled", round(found.spooled_hz), "1/s", f"{each} saved, the broker away"),
        Figure("replayed", round(found.replayed_hz), "1/s", "from the disk to mosquitto and back"),
        Figure(
            "replayed / online",
            round(found.replay_share, 2),
            "",
            "over messages that never see the disk, in turns",
        ),
        judged(
            f"memory, {found.count} queued",
            found.growth_mb,
            "MB",
            "added by so many messages that wait on the disk",
            ("<=", 48),
        ),
    ]
    if not found.offline_bytes:
        return found_rows  # the folder is in memory; nothing can be said of a disk
    online = found.online_bytes / found.online_count
    return [
        *found_rows,
        Figure(
            "disk, offline",
            round(found.offline_bytes / found.count, 2),
            "kB",
            f"written for 1,000 {each}",
        ),
        Figure(
            "disk, online",
            round(online, 3),
            "kB",
            f"for 1,000 acknowledged ones ({found.online_count} sent): numbers are reserved",
        ),
        Figure(
            "disk, online, an hour",
            round(online * _RATE_HZ * 3.6),
            "kB/h",
            f"the same at {_RATE_HZ} messages a second",
        ),
    ]


def measure(folder: Path, port: int, count: int, seconds: float) -> Measured:
    """Measure in this process; `count` messages are queued."""
    message = _a_result()
    with _spool(folder / "online.db") as live, _spool(folder / "queued.db") as queued:
        with _publisher(live, port) as publisher:
            # At least so many that numbers are reserved, which is all that is written.
            online = _send(publisher, live, message, seconds / 2, at_least=BLOCK)
        before_mb, before_bytes = rig.resident_mb(os.getpid()), rig.written_bytes(os.getpid())
        spooled_hz = _queue(queued, message, count)
        offline_bytes = rig.written_bytes(os.getpid()) - before_bytes
        growth_mb = rig.resident_mb(os.getpid()) - before_mb
        online_hz, replayed_hz = [], []
        for _ in range(_ROUNDS):
            with _publisher(live, port) as publisher:
                online_hz.append(_send(publisher, live, message, seconds / 4 / _ROUNDS).rate_hz)
            with _publisher(queued, port):
                replayed_hz.append(_replay(queued, seconds / 4 / _ROUNDS))
    return Measured(
        count=count,
        message_bytes=len(message.payload),
        spooled_hz=spooled_hz,
        offline_bytes=offline_bytes,
        growth_mb=growth_mb,
        replayed_hz=median(replayed_hz),
        replay_share=median(a / b for a, b in zip(replayed_hz, online_hz, strict=True)),
        online_count=online.count,
        online_bytes=online.written_bytes,
    )


def _queue(spool: Spool, message: Message, count: int) -> float:
    """Append `count` messages and wait until all are on the disk; return how many a second."""
    start_s = time.monotonic()
    for _ in range(count):
        spool.append(message)
        while spool.is_pressing():  # no camera is faster than the disk
            time.sleep(0.0005)
    while spool.newest_rows(1):
        if time.monotonic() > start_s + _PATIENCE_S:
            raise EdgeAppError("the disk does not take the messages")
        time.sleep(0.001)
    return count / (time.monotonic() - start_s)


@dataclass(frozen=True, slots=True)
class _Sent:
    count: int
    rate_hz: float
    written_bytes: float


def _send(
    publisher: MqttPublisher, spool: Spool, message: Message, seconds: float, at_least: int = 0
) -> _Sent:
    """Send messages that never see the disk: few wait at a time."""
    publisher.offer(message)  # connecting, and reserving numbers for the first time
    if not publisher.drain(_PATIENCE_S):
        raise EdgeAppError("mosquitto does not acknowledge anything")
    before_bytes, start_s, count = rig.written_bytes(os.getpid()), time.monotonic(), 0
    while time.monotonic() - start_s < seconds or count < at_least:
        for _ in range(_WAITING // 2):
            publisher.offer(message)
            count += 1
        while spool.state().queued > _WAITING // 2:
            time.sleep(0.0002)
    rate_hz = count / (time.monotonic() - start_s)
    return _Sent(count, rate_hz, rig.written_bytes(os.getpid()) - before_bytes)


def _replay(spool: Spool, seconds: float) -> float:
    """Send what is on the disk; return messages a second."""
    give_up_s, before = time.monotonic() + _PATIENCE_S, spool.state().queued
    while spool.state().queued == before and time.monotonic() < give_up_s:
        time.sleep(0.0002)  # until the first acknowledgement
    before, start_s = spool.state().queued, time.monotonic()
    while spool.state().queued and time.monotonic() - start_s < seconds:
        time.sleep(0.001)
    return (before - spool.state().queued) / (time.monotonic() - start_s)


@contextmanager
def _spool(path: Path) -> Iterator[Spool]:
    spool = Spool(MEMORY_MAX_BYTES, _as_message)
    keeper = Keeper(spool, path, _FILE_BYTES)
    try:
        yield spool
    finally:
        keeper.close()


@contextmanager
def _publisher(spool: Spool, port: int) -> Iterator[MqttPublisher]:
    publisher = MqttPublisher(
        Broker("127.0.0.1", port, "bench-spool"),
        spool,
        online=wire.status_message(_TOPICS, online=True),
        offline=wire.status_message(_TOPICS, online=False),
    )
    try:
        yield publisher
    finally:
        publisher.close()


def _as_message(event: Event) -> Message:
    return wire.event_message(_TOPICS, event, time.monotonic_ns(), read_clock())


def _a_result() -> Message:
    """Return a result of the usual length: three labels."""
    result = Result(
        camera="main",
        frame=90_210,
        captured_ns=time.monotonic_ns(),
        task="classify",
        model="mobilenet_v2_1.0_224",
        backend="edgetpu",
        labels=tuple(Label(index, "a label's name", 0.123) for index in (88, 89, 90)),
        timing=Timing(12.1, 0.4, 4.5, 0.1),
        trigger="every",
    )
    return wire.result_message(_TOPICS, result, read_clock())


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    where, port_text, count_text, seconds_text = sys.argv[1:]
    print(
        json.dumps(
            asdict(measure(Path(where), int(port_text), int(count_text), float(seconds_text)))
        )
    )
