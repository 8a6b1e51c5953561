"""The engine's thread: takes the next prepared frame as soon as it has answered the last one.

No thread has to be woken between two inferences; what the engine answers goes on a queue.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edge_app.domain import Engine, Frame, Pixels, Tensor
from edge_app.errors import EngineError
from edge_app.task.image import Crop, fit

_LOOK_UP_S = 0.5  # how often to look up, should nobody wake the thread
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


class Inference:
    """Answers frames into `inbox` until `stop` or a failure, which `close` raises."""

    def __init__(self, frames: Frames, engine: Engine, inbox: Inbox) -> None:
        self._frames = frames
        self._engine = engine
        self._inbox = inbox
        self.idle = False  # waiting for a frame
        self._stopping = False
        self._failure: BaseException | None = None
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each frame let in
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
                self._turns.get()
                prepared = None
                while prepared is None and not self._stopping:
                    self._serve_trials()
                    self.idle = True
                    prepared = self._frames.take(_LOOK_UP_S)
                    self.idle = False
                if prepared is not None:
                    self._inbox.put(self._infer(prepared))
        except BaseException as error:  # noqa: BLE001 - raised by raise_failure(), elsewhere
            self._failure = error
        self._inbox.put(None)
        while not self._trials.empty():
            self._trials.get()[1].set_exception(EngineError("the appliance is ending"))

    def _infer(self, prepared: Prepared) -> Answer:
        started_ns = time.monotonic_ns()
        outputs = self._engine.run(prepared.pixels)
        ended_ns = time.monotonic_ns()
        return Answer(prepared, outputs, self._engine.info.backend, started_ns, ended_ns)

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
