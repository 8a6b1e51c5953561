"""Hold recorded frames back until they are due."""

from __future__ import annotations

import threading
import time

from edge_app.errors import CameraEnded, CameraStalled


class Pacer:
    """A schedule on the monotonic clock, so that waits do not add up their errors."""

    def __init__(self) -> None:
        self._due_ns: int | None = None
        self._interrupted = threading.Event()

    def wait(self, interval_ns: int, timeout_s: float) -> int:
        """Wait until `interval_ns` after the last frame was due; return that moment (monotonic).

        Whoever comes late by more than an interval starts the schedule anew, instead of catching
        up in a burst. Raises CameraStalled when the frame is due after `timeout_s` (it then still
        is due), CameraEnded on `interrupt`.
        """
        now_ns = time.monotonic_ns()
        due_ns = now_ns if self._due_ns is None else self._due_ns + interval_ns
        if due_ns < now_ns - interval_ns:
            due_ns = now_ns
        wait_s = (due_ns - now_ns) / 1e9
        if self._interrupted.wait(max(0.0, min(wait_s, timeout_s))):
            raise CameraEnded("interrupted")
        if wait_s > timeout_s:
            raise CameraStalled(f"the next frame is not due for {wait_s - timeout_s:.1f} s")
        self._due_ns = due_ns
        return time.monotonic_ns()

    def restart(self) -> None:
        """Forget the schedule and any interrupt: the camera was opened again."""
        self._due_ns = None
        self._interrupted.clear()

    def interrupt(self) -> None:
        self._interrupted.set()


class RateLimit:
    """Lets at most `fps` frames a second pass, on average (0: all); for sources with a clock."""

    def __init__(self, fps: float) -> None:
        self._interval_ns = int(1e9 / fps) if fps > 0 else 0
        self._due_ns = 0

    def admits(self, now_ns: int) -> bool:
        """Half an interval early is in time, or a source of just this rate would lose frames."""
        if now_ns < self._due_ns - self._interval_ns // 2:
            return False
        self._due_ns = max(self._due_ns, now_ns - self._interval_ns // 2) + self._interval_ns
        return True
