"""What the bench runs the appliance's loop with, in this process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_app.appliance import SWITCH_INTERVAL_S
from edge_app.camera.mailbox import Mailboxes
from edge_app.domain import Engine, EngineInfo, Label, Message, Publisher, Received, Tensor
from edge_app.inference import Prepared
from edge_app.loop import Job, Loop
from edge_app.policy import Rules
from edge_app.publish.jsonl import JsonLinesPublisher
from edge_app.publish.wire import Topics
from edge_app.report import HealthReader
from edge_app.sensors.clock import read_clock
from edge_app.sensors.sampler import Sample
from edge_app.stats import MqttState, SpoolState
from edge_app.task.classify import decode, scores


class FollowedFrames:
    """Hands on `frames`, and keeps when each was ready (CLOCK_MONOTONIC, ns), by its number."""

    def __init__(self, frames: Mailboxes[Prepared]) -> None:
        self._frames = frames
        self.ready_ns: dict[int, int] = {}

    def take(self, timeout_s: float) -> Prepared | None:
        """See `inference.Frames`."""
        prepared = self._frames.take(timeout_s)
        if prepared is not None:
            self.ready_ns[prepared.seq] = prepared.captured_ns
        return prepared

    def wake(self) -> None:
        """See `inference.Frames`."""
        self._frames.wake()


class FollowedPublisher:
    """Hands on to `publisher`, and keeps each result and when it had been handed over."""

    def __init__(self, publisher: Publisher, topic: str) -> None:
        self._publisher = publisher
        self._topic = topic
        self.handed_over: list[tuple[bytes, int]] = []

    def offer(self, message: Message) -> None:
        """See `domain.Publisher`."""
        self._publisher.offer(message)
        if message.topic == self._topic:
            self.handed_over.append((message.payload, time.monotonic_ns()))

    def received(self) -> list[Received]:
        return self._publisher.received()

    def state(self) -> tuple[SpoolState, MqttState]:
        """See `domain.Publisher`."""
        return self._publisher.state()

    def drain(self, timeout_s: float, *, or_saved: bool = False) -> bool:
        """See `domain.Publisher`."""
        return self._publisher.drain(timeout_s, or_saved=or_saved)

    def close(self) -> None:
        """Do nothing: whoever opened the publisher closes it."""


class Counted(JsonLinesPublisher):
    """Writes records nowhere, and counts them."""

    def __init__(self) -> None:
        self._nowhere = Path("/dev/null").open("wb", buffering=0)  # noqa: SIM115  # closed below
        super().__init__(self._nowhere)
        self._times_ns: list[int] = []

    def offer(self, message: Any) -> None:
        """Count and write the record."""
        self._times_ns.append(time.monotonic_ns())
        super().offer(message)

    def close(self) -> None:
        """End its thread, and close its file."""
        super().close()
        self._nowhere.close()

    def rate_hz(self) -> float:
        """Return records a second, the warming up of the first tenth left out."""
        self.close()
        times_ns = self._times_ns[len(self._times_ns) // 10 :]
        if len(times_ns) < 2:
            return 0.0
        return (len(times_ns) - 1) / ((times_ns[-1] - times_ns[0]) / 1e9)


def run_loop(
    mailboxes: Mailboxes[Prepared],
    engine: Engine,
    publisher: Publisher,
    topics: Topics,
    seconds: float,
    *,
    frames: FollowedFrames | None = None,
) -> None:
    """Serve frames for `seconds`, taken from `frames` if given; every result is published."""
    health = HealthReader(engine, publisher, lambda: mailboxes.counters, lambda _: Sample())
    job = _classify_job(engine.info, health)
    loop = Loop(frames or mailboxes, engine, publisher, topics, job)
    timer = threading.Timer(seconds, loop.stop)
    timer.start()
    with mailboxes:
        loop.run()
    timer.join()


def _classify_job(info: EngineInfo, health: HealthReader) -> Job:
    """Return the appliance's job with every result published and no labels file."""
    spec = info.outputs[0]
    names = tuple(str(index) for index in range(spec.shape[-1]))

    def labels(outputs: list[Tensor], count: int) -> tuple[Label, ...]:
        return decode(scores(outputs[0], spec), names, count, 0.0)

    return Job(
        task="classify",
        model=info.model,
        rules=Rules(mode="every"),
        decode=labels,
        read_clock=read_clock,
        read_health=health.read,
        stats_every_s=10.0,
    )


@contextmanager
def switching_often() -> Iterator[None]:
    """Let the engine's thread have the interpreter as soon as the appliance does."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)
