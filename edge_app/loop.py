"""The only loop: what the engine answers is decoded, judged and published here, in order.

It also keeps time: statistics, events, and whatever was asked for with `call_soon`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_app import policy
from edge_app.domain import (
    Engine,
    Event,
    Label,
    Message,
    Publisher,
    Result,
    Tensor,
    Timing,
    WallClock,
)
from edge_app.errors import CameraEnded
from edge_app.inference import Answer, Frames, Inbox, Inference
from edge_app.policy import Rules
from edge_app.publish import wire
from edge_app.stats import Health
from edge_app.telemetry import Window

_SECOND_NS = 1_000_000_000
_DRAIN_STEP_S = 0.2
_CONSIDERED = 5  # the rules smooth over labels below the threshold too, and more than may be shown


def _nothing(_window: Window, _now_ns: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """What to make of the frames.

    `decode` turns raw outputs into so many labels, best first, whatever their score. `read_health`
    reports on the window it is given. `stats_every_s`: how often that is published. `take_events`
    returns what happened since it was last called. `each_second` gets every second's window.
    """

    task: str
    model: str
    rules: Rules
    decode: Callable[[list[Tensor], int], tuple[Label, ...]]
    read_clock: Callable[[], WallClock]
    read_health: Callable[[Window, int], Health]
    stats_every_s: float
    take_events: Callable[[], Sequence[Event]] = tuple
    each_second: Callable[[Window, int], None] = _nothing


class Loop:
    """Runs until `stop` or the end of every camera. `run` may be called once.

    `rules` and `stats_every_s` may be replaced while it runs, by what runs in its thread.
    """

    def __init__(
        self,
        frames: Frames,
        engine: Engine,
        publisher: Publisher,
        topics: wire.Topics,
        job: Job,
        *,
        inbox: Inbox | None = None,
    ) -> None:
        self._inbox: Inbox = inbox if inbox is not None else queue.SimpleQueue()
        self.inference = Inference(frames, engine, self._inbox)
        self.rules = job.rules
        self.stats_every_s = job.stats_every_s
        self._publisher = publisher
        self._topics = topics
        self._job = job
        self._states: dict[str, policy.State] = {}
        self._to_repeat: set[str] = set()
        self._stopping = False
        self._calls: list[tuple[int, int, Callable[[], None]]] = []  # a heap: when due, order
        self._order = itertools.count()
        now_ns = time.monotonic_ns()
        self._window = Window(now_ns)
        self._second = Window(now_ns)
        self._clock = job.read_clock()
        self._stats: Message | None = None

    def stop(self) -> None:
        """End `run` soon. Safe in a signal handler."""
        self._stopping = True
        self.inference.stop()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call `function` in the loop's thread. For any thread, and for signal handlers."""
        self._inbox.put(function)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Call `function` in this thread, the loop's, after `delay_s`."""
        due_ns = time.monotonic_ns() + int(delay_s * 1e9)
        heapq.heappush(self._calls, (due_ns, next(self._order), function))

    def repeat(self) -> None:
        """Say again what somebody who has just come has missed: statistics, and a result each."""
        self._to_repeat.update(self._states)
        if self._stats is not None:
            self._publisher.offer(self._stats)

    def run(self) -> None:
        """Serve frames. Raises what a camera or the engine raised."""
        self.inference.start()
        try:
            self._serve()
        except CameraEnded:
            self._finish_delivery()
        finally:
            self._stopping = True
            self.inference.stop()
            self.inference.join()

    def _serve(self) -> None:
        """Conclude every answer and keep time, until the engine's thread has come to its end."""
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._inbox.get(timeout=self._until_due_s())
                if item is None:
                    break
                if isinstance(item, Answer):
                    self._conclude(item)
                    self.inference.concluded()
                else:
                    item()
            self._tick()
        self.inference.raise_failure()

    def _conclude(self, answer: Answer) -> None:
        """Decode, judge, publish, count."""
        prepared, rules = answer.prepared, self.rules
        decode_ns = time.monotonic_ns()
        labels = self._job.decode(answer.outputs, max(rules.top_k, _CONSIDERED))
        before = self._states.get(prepared.camera, policy.State())
        repeat = prepared.camera in self._to_repeat
        self._to_repeat.discard(prepared.camera)
        now_s = prepared.captured_ns / 1e9
        state, trigger = policy.decide(rules, before, labels, now_s, repeat=repeat)
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
        end_to_end_ms = _ms(prepared.captured_ns, time.monotonic_ns())
        for window in (self._window, self._second):
            window.published += trigger is not None
            window.add(
                preprocess_ms=prepared.preprocess_ms,
                invoke_ms=invoke_ms,
                end_to_end_ms=end_to_end_ms,
            )

    def _message(
        self,
        answer: Answer,
        labels: tuple[Label, ...],
        timing: Timing,
        trigger: policy.Trigger,
    ) -> Message:
        prepared = answer.prepared
        result = Result(
            camera=prepared.camera,
            frame=prepared.seq,
            captured_ns=prepared.captured_ns,
            task=self._job.task,
            model=self._job.model,
            backend=answer.backend,
            labels=policy.shown(self.rules, labels),
            timing=timing,
            trigger=trigger,
        )
        return wire.result_message(self._topics, result, self._clock)

    def _tick(self) -> None:
        """Do what is due by the clock."""
        now_ns = time.monotonic_ns()
        while self._calls and self._calls[0][0] <= now_ns:
            heapq.heappop(self._calls)[2]()
        self._publish_events(now_ns)
        if now_ns - self._second.started_ns >= _SECOND_NS:
            self._clock = self._job.read_clock()
            self._job.each_second(self._second, now_ns)
            self._second = Window(now_ns)
        if now_ns - self._window.started_ns >= self.stats_every_s * 1e9:
            self._publish_stats(now_ns)

    def _publish_events(self, now_ns: int) -> None:
        for event in self._job.take_events():
            self._publisher.offer(wire.event_message(self._topics, event, now_ns, self._clock))

    def _publish_stats(self, now_ns: int) -> None:
        health = self._job.read_health(self._window, now_ns)
        # Whoever reads a retained report can tell from its absence that none came for three turns.
        expiry_s = max(1, round(3 * self.stats_every_s))
        self._stats = wire.stats_message(self._topics, health, now_ns, self._clock, expiry_s)
        self._publisher.offer(self._stats)
        self._window = Window(now_ns)

    def _until_due_s(self) -> float:
        due_ns = min(
            self._window.started_ns + self.stats_every_s * 1e9,
            self._second.started_ns + _SECOND_NS,
            self._calls[0][0] if self._calls else float("inf"),
        )
        return max(0.0, (due_ns - time.monotonic_ns()) / 1e9)

    def _finish_delivery(self) -> None:
        """After the last frame of a recording: report once more, wait for the broker to have it."""
        now_ns = time.monotonic_ns()
        self._publish_events(now_ns)
        self._publish_stats(now_ns)
        while not self._stopping and not self._publisher.drain(_DRAIN_STEP_S):
            self._tick()  # the supervisor must not take a long wait for a broker for our end


def _ms(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e6
