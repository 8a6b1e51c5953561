"""How fast a device is, and whether it has become slower than it was."""

from __future__ import annotations

from collections import deque

import numpy as np

from edge_app.engine.health import Limits
from edge_app.errors import EngineError

_PATIENCE_MS = 20.0  # before the device's pace is known


class Pace:
    """How long runs take: the last `size` of them. Percentiles are taken every few runs."""

    def __init__(self, size: int = 256, every: int = 16) -> None:
        self._times_ms: deque[float] = deque(maxlen=size)
        self._every = every
        self._added = 0
        self.p95_ms: float | None = None
        self.p99_ms: float | None = None

    def add(self, time_ms: float) -> None:
        """Count one run. The first is left out: it sends the program to the device."""
        self._added += 1
        if self._added == 1:
            return
        self._times_ms.append(time_ms)
        if self._added <= self._every or self._added % self._every == 0:
            p95, p99 = np.percentile(self._times_ms, (95, 99))
            self.p95_ms, self.p99_ms = float(p95), float(p99)

    @property
    def full(self) -> bool:
        """Whether all its runs are measured: enough for a baseline."""
        return len(self._times_ms) == self._times_ms.maxlen


class Drift:
    """A device's `pace` against its own best: `baseline_p95_ms`, over a full window."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slow = False
        self.pace = Pace()
        self.baseline_p95_ms: float | None = None

    @property
    def patience_s(self) -> float:
        """How long a frame may wait for a canary to end."""
        return (self.pace.p99_ms or _PATIENCE_MS) / 1e3

    def follow(self, pace: Pace) -> None:
        """Watch this pace from now on: the device was opened anew."""
        self.pace = pace

    def forget(self) -> None:
        """Begin with no baseline: the device will run at another speed."""
        self.follow(Pace())
        self.baseline_p95_ms, self._slow = None, False

    def learn(self) -> None:
        """Look at the pace after a run."""
        p95_ms, baseline_ms = self.pace.p95_ms, self.baseline_p95_ms
        if self.pace.full and p95_ms and (baseline_ms is None or p95_ms < baseline_ms):
            self.baseline_p95_ms = p95_ms

    def refuse_slow(self, median_ms: float) -> None:
        """Raise EngineError when canaries that took `median_ms` were far too slow."""
        if self._beyond(median_ms, self._limits.too_slow):
            raise EngineError(
                f"too slow: canaries take {median_ms:.1f} ms, "
                f"its p95 was {self.baseline_p95_ms:.1f} ms",
                hint="check the Edge TPU's cable, its USB port (blue: USB 3) and its cooling",
            )

    def newly_slow(self) -> bool:
        """Whether the device has become slow since the last call. It recovers half-way back."""
        if not self.pace.full or self.pace.p95_ms is None:
            return False
        before = self._slow
        factor = (1 + self._limits.drift) / 2 if before else self._limits.drift
        self._slow = self._beyond(self.pace.p95_ms, factor)
        return self._slow and not before

    def _beyond(self, time_ms: float, factor: float) -> bool:
        baseline_ms = self.baseline_p95_ms
        return baseline_ms is not None and time_ms > factor * baseline_ms + self._limits.noise_ms
