from __future__ import annotations

from array import array

from edge_app.stats import Percentiles
from edge_app.telemetry import Window, percentiles


def test_percentiles_of_known_numbers() -> None:
    times = array("f", range(101))  # 0 to 100: the p-th percentile is p
    assert percentiles(times) == Percentiles(50.0, 95.0, 99.0, 100.0)


def test_percentiles_of_one_and_of_none() -> None:
    assert percentiles(array("f", [7.25])) == Percentiles(7.25, 7.25, 7.25, 7.25)
    assert percentiles(array("f")) is None


def test_a_window_counts_every_frame() -> None:
    window = Window(started_ns=5)
    assert window.latency_ms() == {"preprocess": None, "invoke": None, "end_to_end": None}
    for step in range(1, 4):
        window.add(preprocess_ms=step, invoke_ms=10 * step, end_to_end_ms=100 * step)
    assert (window.started_ns, window.inferred, window.published) == (5, 3, 0)
    found = {stage: times and times.max for stage, times in window.latency_ms().items()}
    assert found == {"preprocess": 3, "invoke": 30, "end_to_end": 300}
    window.add(preprocess_ms=1, invoke_ms=1, end_to_end_ms=1)  # reading does not end the window
    assert window.inferred == 4
