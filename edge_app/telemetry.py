"""Counting and timing of every frame over one reporting window."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import numpy as np

from edge_app.stats import Percentiles

STAGES = ("preprocess", "invoke", "end_to_end")


class Window:
    """Everything that happened since `started_ns`: exact, not sampled."""

    def __init__(self, started_ns: int) -> None:
        self.started_ns = started_ns
        self.inferred = 0
        self.published = 0
        self._stages_ms: Mapping[str, array[float]] = {stage: array("f") for stage in STAGES}

    def add(self, *, preprocess_ms: float, invoke_ms: float, end_to_end_ms: float) -> None:
        """Count one inferred frame. `end_to_end_ms`: from capture to message handed over."""
        self.inferred += 1
        self._stages_ms["preprocess"].append(preprocess_ms)
        self._stages_ms["invoke"].append(invoke_ms)
        self._stages_ms["end_to_end"].append(end_to_end_ms)

    def latency_ms(self) -> dict[str, Percentiles | None]:
        """Return the percentiles of each stage; None for a window without frames."""
        return {stage: percentiles(times) for stage, times in self._stages_ms.items()}


def percentiles(times_ms: array[float]) -> Percentiles | None:
    """Return percentiles by linear interpolation between the closest ranks; None of nothing."""
    if not times_ms:
        return None
    p50, p95, p99 = np.percentile(np.frombuffer(times_ms, np.float32), (50, 95, 99))
    return Percentiles(*(round(float(p), 2) for p in (p50, p95, p99, max(times_ms))))
