"""One capture thread and one slot per camera: the newest frame wins, the consumer never queues.

A live camera's slot is overwritten when the consumer is late, and the lost frame counted. A
lossless feed (a recording that must be delivered whole) waits for its slot to be free instead.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from edge_app.domain import Camera, Frame
from edge_app.errors import CameraEnded, CameraError, CameraStalled, CorruptFrame

T = TypeVar("T")

log = logging.getLogger(__name__)

JOIN_S = 3.5  # longer than the longest wait of a camera that nothing can interrupt
# A camera reports its own stall at `stall_s`, and can say more about it; the watch comes after,
# for the one that hangs inside a library.
WATCH_FACTOR = 1.25
_MOST_TOLD = 20  # of different reasons why frames cannot be decoded; all are counted
_GATE_S = 0.1  # how often a recording asks whether it may go on


@dataclass(frozen=True, slots=True)
class Feed:
    """A camera and how its frames are to be treated.

    `stall_s`: longest wait for a frame; `open_s`: the same for the first one, opening included.
    """

    camera: Camera
    lossless: bool = False
    stall_s: float = 5.0
    open_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Frames since the start: read, overwritten before they were taken, undecodable, left out."""

    captured: int = 0
    dropped: int = 0
    corrupt: int = 0
    gated: int = 0


class _Box(Generic[T]):
    """One camera's slot, written by its thread and emptied by `Mailboxes.take`."""

    def __init__(self, name: str, feed: Feed) -> None:
        self.name = name
        self.feed = feed
        self.changed = threading.Condition()
        self.slot: tuple[T] | None = None  # a tuple, so that None may be an item
        self.finished = False
        self.failure: BaseException | None = None
        self.captured = self.dropped = self.corrupt = self.gated = 0
        self.told_corrupt: set[str] = set()
        self.newest: Frame | None = None
        self.watched_since_ns = time.monotonic_ns()

    def stalls_at_ns(self) -> int:
        bound_s = self.feed.stall_s if self.captured else self.feed.open_s
        return self.watched_since_ns + int(bound_s * WATCH_FACTOR * 1e9)

    def put(self, item: T, stopping: threading.Event) -> bool:
        """Fill the slot; True when it was empty before."""
        with self.changed:
            if self.feed.lossless:
                self.changed.wait_for(lambda: self.slot is None or stopping.is_set())
            was_empty = self.slot is None
            self.dropped += not was_empty
            self.slot = (item,)
            self.watched_since_ns = time.monotonic_ns()
        return was_empty

    def empty(self) -> tuple[T] | None:
        with self.changed:
            item, self.slot = self.slot, None
            if self.feed.lossless:  # it may have waited for us: that was no stall of the camera
                self.watched_since_ns = time.monotonic_ns()
            self.changed.notify()
        return item


class Mailboxes(Generic[T]):
    """The newest prepared frame of every camera. Use as a context manager, `take` from one thread.

    `prepare` turns a frame into what the consumer wants; it runs in the capture thread, so that it
    overlaps the consumer's work. `wait_s` says how long a camera's frame has to wait before it may
    pass: a live frame that has to is left out and counted, a recording waits.
    """

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        prepare: Callable[[Frame], T],
        wait_s: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self._prepare = prepare
        self._wait_s = wait_s
        self._stopping = threading.Event()
        self._boxes: list[_Box[T]] = [_Box(name, feed) for name, feed in feeds.items()]
        self._threads = [
            threading.Thread(
                target=self._capture, args=(box,), name=f"camera-{box.name}", daemon=True
            )
            for box in self._boxes
        ]
        # Holds a box once per filled slot and once for its end, None for `wake`. First in, first
        # out over boxes that are in it once is a fair turn for each. SimpleQueue.put may interrupt
        # a `get` in the same thread, so a signal handler can wake.
        self._ready: queue.SimpleQueue[_Box[T] | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        for box, thread in zip(self._boxes, self._threads, strict=True):
            box.watched_since_ns = time.monotonic_ns()
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for box in self._boxes:
            box.feed.camera.interrupt()
            with box.changed:
                box.changed.notify_all()
        deadline = time.monotonic() + JOIN_S
        for box, thread in zip(self._boxes, self._threads, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error(
                    "camera %s: its thread hangs and is left behind (%.0f s waited)",
                    box.name,
                    JOIN_S,
                )

    @property
    def counters(self) -> dict[str, Counters]:
        return {
            box.name: Counters(box.captured, box.dropped, box.corrupt, box.gated)
            for box in self._boxes
        }

    def newest(self) -> dict[str, Frame | None]:
        """Return each camera's newest frame, whether or not it was let through or taken."""
        return {box.name: box.newest for box in self._boxes}

    def wake(self) -> None:
        """Make the current or next `take` return None. Safe in signal handlers and any thread."""
        self._ready.put(None)

    def take(self, timeout_s: float) -> T | None:
        """Return the next camera's newest prepared frame; None after `timeout_s` or `wake`.

        Raises CameraEnded when no camera will give another, the failure (CameraError, CameraStalled
        or any other) of a camera once its last frame was taken, CameraStalled for one that hangs.
        """
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            box = self._next(deadline_ns)
            if box is None:
                return None
            item = box.empty()
            if item is not None:
                return item[0]
            box.finished = True  # nothing in its slot: it was here for its end
            if box.failure is not None:
                self._ready.put(box)  # raised again by the next take
                if isinstance(box.failure, CameraError):
                    box.failure.camera = box.name
                raise box.failure

    def _next(self, deadline_ns: int) -> _Box[T] | None:
        """Wait for a box that has something to say, at most until `deadline_ns` or `wake`."""
        while True:
            unfinished = [box for box in self._boxes if not box.finished]
            now_ns = time.monotonic_ns()
            for box, thread in zip(self._boxes, self._threads, strict=True):
                # What has ended does not stall; that it has ended is in the queue, in its turn.
                at_work = not box.finished and thread.is_alive()
                if at_work and box.slot is None and box.stalls_at_ns() <= now_ns:
                    stalled = CameraStalled(
                        f"camera {box.name}: no frame for {_waited_s(box, now_ns):.1f} s",
                        hint="check its cable, power and network; restarting usually helps",
                    )
                    stalled.camera = box.name
                    raise stalled
            if not unfinished and self._ready.empty():
                raise CameraEnded("every camera has come to its end")
            until_ns = min([deadline_ns, *(box.stalls_at_ns() for box in unfinished)])
            try:
                return self._ready.get(timeout=max(0, until_ns - now_ns) / 1e9)
            except queue.Empty:
                if time.monotonic_ns() >= deadline_ns:
                    return None

    def _capture(self, box: _Box[T]) -> None:
        """Thread of one camera: read, prepare, put, until its end, its failure or ours."""
        try:
            with box.feed.camera as camera:
                while not self._stopping.is_set():
                    self._capture_one(box, camera)
        except CameraEnded:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by take(), in the thread that asks
            box.failure = error
        self._ready.put(box)

    def _capture_one(self, box: _Box[T], camera: Camera) -> None:
        try:
            frame = camera.read(box.feed.stall_s if box.captured else box.feed.open_s)
        except CorruptFrame as error:
            box.corrupt += 1
            reason = str(error)  # a camera's are alike, a folder's name the picture
            is_told = reason in box.told_corrupt or len(box.told_corrupt) >= _MOST_TOLD
            log.log(
                logging.DEBUG if is_told else logging.WARNING,
                "camera %s: skipping what cannot be decoded: %s",
                box.name,
                reason,
                extra={"edge_camera": box.name},
            )
            if not is_told:
                box.told_corrupt.add(reason)
            return
        box.captured += 1
        box.newest = frame
        if self._passes(box) and box.put(self._prepare(frame), self._stopping):
            self._ready.put(box)

    def _passes(self, box: _Box[T]) -> bool:
        while (wait_s := self._wait_s(box.name)) > 0:
            box.watched_since_ns = time.monotonic_ns()  # the camera is not to blame
            if not box.feed.lossless:
                box.gated += 1
                return False
            if self._stopping.wait(min(wait_s, _GATE_S)):
                return False
        return True


def _waited_s(box: _Box[T], now_ns: int) -> float:
    return (now_ns - box.watched_since_ns) / 1e9
