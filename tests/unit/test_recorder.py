"""The flight recorder: what it keeps, and how much of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import pytest

from edge_app.domain import Event
from edge_app.recorder import COLUMNS, MAX_BYTES, SECONDS, Recorder
from edge_app.stats import (
    Accelerator,
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


def test_a_process_that_was_killed_leaves_a_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "flight.json"
    killed = Recorder(copy)
    assert not killed.recover()
    killed.add_event(Event("fallback", "the last thing it said"))
    killed.add_second(health(), 10 * 10**9)
    killed.add_second(health(), 11 * 10**9)  # not copied again at once
    killed.add_second(health(), 15 * 10**9)
    after = Recorder(copy)
    assert after.recover()
    record = json.loads(caplog.messages[-1].removeprefix("flight recorder: "))
    assert "killed" in record["reason"]
    assert [row[0] for row in record["seconds"]] == [10_000, 11_000, 15_000]
    assert record["events"][0]["message"] == "the last thing it said"
    after.close()
    assert not Recorder(copy).recover()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff" * 100, b'{"reason": 1}'])
def test_what_is_no_copy_does_no_harm(tmp_path: Path, content: bytes) -> None:
    copy = tmp_path / "flight.json"
    copy.write_bytes(content)
    recorder = Recorder(copy)
    assert not recorder.recover()
    recorder.add_second(health(), 10 * 10**9)
    assert Recorder(copy).recover()


def test_a_folder_that_takes_nothing_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path / "absent" / "flight.json")
    for second in range(20):
        recorder.add_second(health(), second * 10**10)
    assert len(caplog.messages) == 1  # said once
    recorder.close()
