"""What can be changed while the appliance runs. A restart brings the configured values back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from edge_app.domain import Performance

Mode = Literal["changes", "every"]


class Settings(Struct, frozen=True):
    """The values in effect.

    `threshold`, `top_k`, `mode`: as configured, or as last `set`. `fps`: at most so many frames a
    second of each camera are inferred; 0: every frame that the engine has time for. `paused`:
    whether inferring rests. `performance`: the Edge TPU's clock; None when none is in use.
    """

    threshold: float
    top_k: int
    mode: Mode
    fps: float = 0.0
    paused: bool = False
    performance: Performance | None = None


class Gate:
    """Lets through those of the captured frames that the settings want inferred.

    `paused`, `fps`: as in `Settings`, set from any thread.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.paused = False
        self.fps = 0.0
        self._clock_ns = clock_ns
        self._passed_ns: dict[str, int] = {}  # when the last one was due

    def wait_s(self, camera: str) -> float:
        """Return how long a camera's next frame has to wait; 0: it may pass, and is counted.

        A frame may come half a period early, since cameras are not punctual, but the frames after
        it must make up for that.
        """
        fps, now_ns = self.fps, self._clock_ns()
        if self.paused:
            return math.inf
        if not fps:
            return 0.0
        period_ns = int(1e9 / fps)
        due_ns = self._passed_ns.get(camera, now_ns - period_ns) + period_ns
        if due_ns - now_ns > period_ns // 2:
            return (due_ns - now_ns) / 1e9
        self._passed_ns[camera] = max(due_ns, now_ns - period_ns)
        return 0.0
