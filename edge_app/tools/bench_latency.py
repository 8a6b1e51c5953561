"""What the appliance's own path adds to an inference, frame by frame.

The loop, the cameras and the MQTT publisher are the appliance's, in this process, so that a frame
can be followed to the moment its result is handed over: no message can tell that of itself.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from edge_app.appliance import SWITCH_INTERVAL_S
from edge_app.camera.mailbox import Mailboxes
from edge_app.cameras import open_cameras
from edge_app.catalog import resolve
from edge_app.config import load
from edge_app.domain import Message, MqttState, Publisher, Received, SpoolState
from edge_app.engines import open_engine
from edge_app.inference import Prepared
from edge_app.loop import Loop
from edge_app.publish.wire import Topics
from edge_app.publishers import publishing
from edge_app.report import HealthReader
from edge_app.sensors.sampler import Sample
from edge_app.tools.bench_child import classify_job

_WARM_UP_FRAMES = 10


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


def added_ms(config_path: Path, seconds: float) -> list[float]:
    """Run for `seconds`; return for each frame its time from ready to handed over, less inference.

    Resizing, waiting for the engine, decoding, the rules, encoding and handing over are in it.
    """
    config = load(config_path)
    engine = open_engine(config.model, resolve(config.model.name))
    topics = Topics(config.mqtt.base, config.device.id)
    mailboxes = open_cameras(config.camera, engine.info.input_px)
    frames = FollowedFrames(mailboxes)
    with closing(engine), publishing(config, topics) as inner, switching_often():
        publisher = FollowedPublisher(inner, topics.result)
        health = HealthReader(engine, publisher, lambda: mailboxes.counters, lambda _: Sample())
        job = classify_job(engine.info, health.read)
        loop = Loop(frames, engine, publisher, topics, job)
        timer = threading.Timer(seconds, loop.stop)
        timer.start()
        with mailboxes:
            loop.run()
        timer.join()
    return frame_added_ms(frames.ready_ns, publisher.handed_over)[_WARM_UP_FRAMES:]


def frame_added_ms(
    ready_ns: Mapping[int, int], handed_over: Sequence[tuple[bytes, int]]
) -> list[float]:
    """Return for each result what was added to its inference."""
    added = []
    for payload, handed_ns in handed_over:
        result = json.loads(payload)
        spent_ms = (handed_ns - ready_ns[result["frame"]]) / 1e6
        added.append(spent_ms - result["timing_ms"]["invoke"])
    return added


@contextmanager
def switching_often() -> Iterator[None]:
    """Let the engine's thread have the interpreter as soon as the appliance does."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)
