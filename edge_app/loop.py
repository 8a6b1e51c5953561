"""The only loop: the newest frame goes through the engine, and what it showed goes out.

The engine's thread takes the next frame (already fitted, in its capture thread) as soon as it has
answered the last one; the loop's thread decodes, judges and publishes the answers, in order. So no
thread has to be woken between two inferences.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_app import policy
from edge_app.domain import (
    Engine,
    Event,
    Frame,
    Health,
    Label,
    Message,
    Pixels,
    Publisher,
    Result,
    Tensor,
    Timing,
    WallClock,
)
from edge_app.errors import CameraEnded
from edge_app.policy import Rules
from edge_app.publish import wire
from edge_app.task.image import Crop, fit
from edge_app.telemetry import Window

_CLOCK_EVERY_NS = 1_000_000_000
_DRAIN_STEP_S = 0.2
_LOOK_UP_S = 0.5  # the engine's thread looks up this often, should nobody wake it
_UNDECODED_LIMIT = 2  # one frame at work and one answered; more would only be older when published


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame at the model's size, ready for the engine."""

    camera: str
    seq: int
    captured_ns: int
    pixels: Pixels
    preprocess_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of one prepared frame, and when."""

    prepared: Prepared
    outputs: list[Tensor]
    backend: str
    started_ns: int
    ended_ns: int


class Frames(Protocol):
    """Where prepared frames come from (`camera.mailbox.Mailboxes`)."""

    def take(self, timeout_s: float) -> Prepared | None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """What to make of the frames.

    `decode` turns raw outputs into labels, best first, more than `top_k` and below the threshold
    too, because the rules look at those as well. `read_health`
    reports on the window it is given. `stats_every_s`: how often that is published. `take_events`
    returns what happened since it was last called.
    """

    task: str
    model: str
    top_k: int
    rules: Rules
    decode: Callable[[list[Tensor]], tuple[Label, ...]]
    read_clock: Callable[[], WallClock]
    read_health: Callable[[Window, int], Health]
    stats_every_s: float
    take_events: Callable[[], Sequence[Event]] = tuple


def preparer(size_px: tuple[int, int], crops: Mapping[str, Crop]) -> Callable[[Frame], Prepared]:
    """Return what fits a camera's frames to the model's input of `size_px` (width, height)."""

    def prepare(frame: Frame) -> Prepared:
        start_ns = time.monotonic_ns()
        pixels = fit(frame.pixels, size_px, crops[frame.camera]).pixels
        spent_ms = _ms(start_ns, time.monotonic_ns())
        return Prepared(frame.camera, frame.seq, frame.captured_ns, pixels, spent_ms)

    return prepare


class Loop:
    """Runs until `stop` or the end of every camera. `run` may be called once."""

    def __init__(
        self,
        frames: Frames,
        engine: Engine,
        publisher: Publisher,
        topics: wire.Topics,
        job: Job,
    ) -> None:
        self._frames = frames
        self._engine = engine
        self._publisher = publisher
        self._topics = topics
        self._job = job
        self._states: dict[str, policy.State] = {}
        self._stopping = False
        self._failure: BaseException | None = None
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()  # None: the end
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each frame let in
        for _ in range(_UNDECODED_LIMIT):
            self._turns.put(None)
        now_ns = time.monotonic_ns()
        self._window = Window(now_ns)
        self._clock = job.read_clock()
        self._clock_read_ns = now_ns

    def stop(self) -> None:
        """End `run` soon. Safe in a signal handler; wake the frames' `take` as well."""
        self._stopping = True

    def run(self) -> None:
        """Serve frames. Raises what a camera or the engine raised."""
        worker = threading.Thread(target=self._infer_all, name="engine")
        worker.start()
        try:
            self._serve()
        except CameraEnded:
            self._finish_delivery()
        finally:
            self._stopping = True
            self._turns.put(None)
            worker.join()

    def _infer_all(self) -> None:
        """Thread of the engine: infer on what comes, until `stop` or a failure."""
        try:
            while not self._stopping:
                self._turns.get()
                prepared = None
                while prepared is None and not self._stopping:
                    prepared = self._frames.take(_LOOK_UP_S)
                if prepared is not None:
                    self._answers.put(self._infer(prepared))
        except BaseException as error:  # noqa: BLE001 - raised by run(), in its caller's thread
            self._failure = error
        self._answers.put(None)

    def _infer(self, prepared: Prepared) -> Answer:
        started_ns = time.monotonic_ns()
        outputs = self._engine.run(prepared.pixels)
        ended_ns = time.monotonic_ns()
        return Answer(prepared, outputs, self._engine.info.backend, started_ns, ended_ns)

    def _serve(self) -> None:
        """Conclude every answer and keep time, until the engine's thread has come to its end."""
        while True:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=self._until_tick_s())
                if answer is None:
                    break
                self._conclude(answer)
                self._turns.put(None)
            self._tick()
        if self._failure is not None:
            raise self._failure

    def _conclude(self, answer: Answer) -> None:
        """Decode, judge, publish, count."""
        prepared = answer.prepared
        decode_ns = time.monotonic_ns()
        labels = self._job.decode(answer.outputs)
        before = self._states.get(prepared.camera, policy.State())
        rules = self._job.rules
        state, trigger = policy.decide(rules, before, labels, prepared.captured_ns / 1e9)
        self._states[prepared.camera] = state
        invoke_ms = _ms(answer.started_ns, answer.ended_ns)
        if trigger is not None:
            timing = Timing(
                age_ms=_ms(prepared.captured_ns, answer.started_ns),
                preprocess_ms=prepared.preprocess_ms,
                invoke_ms=invoke_ms,
                postprocess_ms=_ms(decode_ns, time.monotonic_ns()),
            )
            self._publisher.offer(self._message(answer, labels, timing, trigger))
            self._window.published += 1
        self._window.add(
            preprocess_ms=prepared.preprocess_ms,
            invoke_ms=invoke_ms,
            end_to_end_ms=_ms(prepared.captured_ns, time.monotonic_ns()),
        )

    def _message(
        self,
        answer: Answer,
        labels: tuple[Label, ...],
        timing: Timing,
        trigger: policy.Trigger,
    ) -> Message:
        prepared, threshold = answer.prepared, self._job.rules.threshold
        shown = tuple(label for label in labels[: self._job.top_k] if label.score >= threshold)
        result = Result(
            camera=prepared.camera,
            frame=prepared.seq,
            captured_ns=prepared.captured_ns,
            task=self._job.task,
            model=self._job.model,
            backend=answer.backend,
            labels=shown,
            timing=timing,
            trigger=trigger,
        )
        return wire.result_message(self._topics, result, self._clock)

    def _tick(self) -> None:
        """Do what is due by the clock."""
        now_ns = time.monotonic_ns()
        if now_ns - self._clock_read_ns >= _CLOCK_EVERY_NS:
            self._clock = self._job.read_clock()
            self._clock_read_ns = now_ns
        self._publish_events(now_ns)
        if now_ns - self._window.started_ns >= self._job.stats_every_s * 1e9:
            self._publish_stats(now_ns)

    def _publish_events(self, now_ns: int) -> None:
        for event in self._job.take_events():
            self._publisher.offer(wire.event_message(self._topics, event, now_ns, self._clock))

    def _publish_stats(self, now_ns: int) -> None:
        health = self._job.read_health(self._window, now_ns)
        # Whoever reads a retained report can tell from its absence that none came for three turns.
        expiry_s = max(1, round(3 * self._job.stats_every_s))
        message = wire.stats_message(self._topics, health, now_ns, self._clock, expiry_s)
        self._publisher.offer(message)
        self._window = Window(now_ns)

    def _until_tick_s(self) -> float:
        due_ns = self._window.started_ns + self._job.stats_every_s * 1e9
        return max(0.0, (due_ns - time.monotonic_ns()) / 1e9)

    def _finish_delivery(self) -> None:
        """After the last frame of a recording: report once more, wait for the broker to have it."""
        now_ns = time.monotonic_ns()
        self._publish_events(now_ns)
        self._publish_stats(now_ns)
        while not self._stopping and not self._publisher.drain(_DRAIN_STEP_S):
            pass


def _ms(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e6
