"""Rate limit and schedule, by numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.camera.pacing import RateLimit

MS = 1_000_000
START_NS = 10**12


@pytest.mark.parametrize(
    ("source_ms", "fps", "expected"),
    [(33, 0, 300), (100 / 3, 30, 300), (100 / 3, 20, 200), (100 / 3, 10, 100), (1000, 30, 300)],
)
def test_a_steady_source_is_thinned_to_the_rate(
    source_ms: float, fps: float, expected: int
) -> None:
    limit = RateLimit(fps)
    admitted = sum(limit.admits(START_NS + int(i * source_ms * MS)) for i in range(300))
    assert admitted == pytest.approx(expected, abs=2)


@given(st.lists(st.floats(-10, 10), min_size=300, max_size=300))
def test_jitter_loses_no_frame_of_a_source_at_its_rate(jitter_ms: list[float]) -> None:
    limit = RateLimit(30)
    times = (START_NS + int((i * 100 / 3 + j) * MS) for i, j in enumerate(jitter_ms))
    assert sum(limit.admits(now_ns) for now_ns in times) >= 295
