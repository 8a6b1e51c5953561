"""The engine's thread: takes the next prepared frame as soon as it has answered the last one.

No thread has to be woken between two inferences; what the engine answers goes on a queue. An
accelerator gets the next frame while it is at work on one, if there is one, and never waits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edge_app.domain import Engine, EngineInfo, Frame, PipelinedEngine, Pixels, Tensor
from edge_app.errors import EngineError
from edge_app.task.image import Crop, fit

_LOOK_UP_S = 0.5  # how often to look up, should nobody wake the thread
# One frame at work, one that an accelerator finds when that is done, and one answered; more would
# only be older when published.
_UNDECODED_LIMIT = 3


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


@dataclass(frozen=True, slots=True)
class Trial:
    """What the engine made of a picture that was no frame."""

    outputs: list[Tensor]
    backend: str
    invoke_ms: float


Inbox: TypeAlias = "queue.SimpleQueue[Answer | Callable[[], None] | None]"
"""What the loop's thread waits on: answers, functions to call there, and None for the end."""


class Frames(Protocol):
    """Where prepared frames come from (`camera.mailbox.Mailboxes`)."""

    def take(self, timeout_s: float) -> Prepared | None: ...

    def wake(self) -> None: ...


def preparer(size_px: tuple[int, int], crops: Mapping[str, Crop]) -> Callable[[Frame], Prepared]:
    """Return what fits a camera's frames to the model's input of `size_px` (width, height)."""

    def prepare(frame: Frame) -> Prepared:
        start_ns = time.monotonic_ns()
        pixels = fit(frame.pixels, size_px, crops[frame.camera]).pixels
        spent_ms = (time.monotonic_ns() - start_ns) / 1e6
        return Prepared(frame.camera, frame.seq, frame.captured_ns, pixels, spent_ms)

    return prepare


class OneByOne:
    """An engine that works while it is waited for, as a `PipelinedEngine`."""

    ahead = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pixels: deque[Pixels] = deque()
        self.run, self.close = engine.run, engine.close

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def start(self, pixels: Pixels) -> None:
        """See `domain.PipelinedEngine`."""
        self._pixels.append(pixels)

    def finish(self) -> list[Tensor]:
        """See `domain.PipelinedEngine`."""
        return self._engine.run(self._pixels.popleft())


class Inference:
    """Answers frames into `inbox` until `stop` or a failure, which `close` raises."""

    def __init__(self, frames: Frames, engine: Engine, inbox: Inbox) -> None:
        self._frames = frames
        self._engine = engine if isinstance(engine, PipelinedEngine) else OneByOne(engine)
        self._at_work: deque[tuple[Prepared, int]] = deque()  # and when each was started (ns)
        self._ended_ns = 0  # when the last answer came
        self._inbox = inbox
        self.idle = False  # waiting for a frame
        self._stopping = False
        self._failure: BaseException | None = None
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each frame let in
        self._let_in = False  # one that has not come yet
        for _ in range(_UNDECODED_LIMIT):
            self._turns.put(None)
        self._trials: queue.SimpleQueue[tuple[Pixels, Future[Trial]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine")

    def start(self) -> None:
        self._thread.start()

    def concluded(self) -> None:
        """Let in another frame, in the place of one whose answer was dealt with."""
        self._turns.put(None)

    def try_out(self, pixels: Pixels, timeout_s: float = 10.0) -> Trial:
        """Infer on a picture of the model's input size, between two frames.

        For any thread that may wait. Raises EngineError, also when there is no answer in time.
        """
        future: Future[Trial] = Future()
        self._trials.put((pixels, future))
        self._frames.wake()
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            raise EngineError(f"no answer within {timeout_s:g} s") from None

    def stop(self) -> None:
        """End soon. Safe in a signal handler."""
        self._stopping = True
        self._turns.put(None)
        self._frames.wake()

    def join(self) -> None:
        self._thread.join()

    def raise_failure(self) -> None:
        """Raise what a camera or the engine raised, if anything did."""
        if self._failure is not None:
            raise self._failure

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
        except BaseException as error:  # noqa: BLE001 - raised by raise_failure(), elsewhere
            self._failure = error
        try:
            self._finish_all()
        except BaseException as error:  # noqa: BLE001 - as above; the first one is the cause
            self._failure = self._failure or error
        self._inbox.put(None)
        while not self._trials.empty():
            self._trials.get()[1].set_exception(EngineError("the appliance is ending"))

    def _step(self) -> None:
        """Start the next frame if the engine has room for it, or answer the first at work."""
        if not self._trials.empty():
            self._finish_all()
            self._serve_trials()
        if len(self._at_work) <= self._engine.ahead:
            prepared = self._next_frame(wait=not self._at_work)
            if prepared is not None:
                self._engine.start(prepared.pixels)
                self._at_work.append((prepared, time.monotonic_ns()))
                return
        if self._at_work:
            self._finish()

    def _next_frame(self, *, wait: bool) -> Prepared | None:
        """Return a frame that is let in, waiting for it only for a while, if at all."""
        if not self._let_in:
            try:
                self._turns.get(block=wait)
            except queue.Empty:
                return None
        self.idle = wait
        prepared = self._frames.take(_LOOK_UP_S if wait else 0.0)
        self.idle = False
        self._let_in = prepared is None
        return prepared

    def _finish_all(self) -> None:
        while self._at_work:
            self._finish()

    def _finish(self) -> None:
        prepared, started_ns = self._at_work.popleft()
        outputs = self._engine.finish()
        begun_ns = max(started_ns, self._ended_ns)  # it had to wait for the one before it
        self._ended_ns = time.monotonic_ns()
        backend = self._engine.info.backend
        self._inbox.put(Answer(prepared, outputs, backend, begun_ns, self._ended_ns))

    def _serve_trials(self) -> None:
        while not self._trials.empty():
            pixels, future = self._trials.get()
            started_ns = time.monotonic_ns()
            try:
                outputs = self._engine.run(pixels)
            except EngineError as error:
                future.set_exception(error)
            else:
                spent_ms = (time.monotonic_ns() - started_ns) / 1e6
                future.set_result(Trial(outputs, self._engine.info.backend, spent_ms))
