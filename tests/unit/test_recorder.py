"""The flight recorder: what it keeps, and how much of it."""

from __future__ import annotations

import json
import logging

import msgspec
import pytest

from edge_app.domain import (
    Accelerator,
    Event,
    Frames,
    Health,
    MqttState,
    Percentiles,
    Power,
    ProcessUse,
    Rates,
    SpoolState,
    Thermal,
    Throttled,
)
from edge_app.recorder import COLUMNS, MAX_BYTES, SECONDS, Recorder


def health(captured: int = 30) -> Health:
    return Health(
        window_s=1.0,
        backend="edgetpu",
        fps=Rates(30.0, 29.5, 0.4),
        frames=Frames(captured, 29, 1, 2, 3),
        latency_ms={
            "preprocess": Percentiles(0.4, 0.5, 0.6, 1.1),
            "invoke": Percentiles(4.4, 4.5, 4.6, 5.1),
            "end_to_end": None,
        },
        power=Power(watts=3.1, source="ina226"),
        thermal_c=Thermal(soc=51.2),
        throttled=Throttled(now=("under_voltage", "throttled")),
        accelerator=Accelerator(state="healthy"),
        process=ProcessUse(92.0, 31.0),
        spool=SpoolState(queued=7, bytes=700, dropped=1),
        mqtt=MqttState(connects=2),
    )


def test_a_second_is_a_row_of_what_the_columns_name() -> None:
    recorder = Recorder()
    recorder.add_second(health(), 123_456_000_000)
    record = recorder.record("command")
    row = dict(zip(record.columns, record.seconds[0], strict=True))
    assert record.columns == COLUMNS
    assert (row["uptime_ms"], row["inferred_fps"], row["gated"]) == (123_456, 29.5, 2)
    assert (row["invoke_p95_ms"], row["end_to_end_max_ms"]) == (4.5, None)
    assert (row["queued"], row["lost"], row["connects"]) == (7, 1, 2)
    assert (row["accelerator"], row["throttled"]) == ("healthy", "under_voltage throttled")


def test_it_keeps_the_newest_minute() -> None:
    recorder = Recorder()
    for second in range(100):
        recorder.add_second(health(), second * 10**9)
    times = [row[0] for row in recorder.record("x").seconds]
    assert times == [second * 1000 for second in range(100 - SECONDS, 100)]


def test_however_much_happened_it_fits_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    for number in range(500):
        recorder.add_second(health(10**9), number)
        recorder.add_event(Event("fallback", f"{number} " + "\N{SNOWMAN}\n" * 2000))
    with caplog.at_level(logging.ERROR):
        recorder.write("RuntimeError: " + "why " * 1000)
    (line,) = caplog.messages
    assert "\n" not in line
    assert len(line.encode()) <= MAX_BYTES + 100
    record = json.loads(line.removeprefix("flight recorder: "))
    assert len(record["seconds"]) == SECONDS
    numbers = [int(event["message"].split()[0]) for event in record["events"]]
    assert numbers[-1] == 499  # the newest are kept
    assert len(numbers) > 10
    assert msgspec.convert(record["columns"], list[str]) == COLUMNS
