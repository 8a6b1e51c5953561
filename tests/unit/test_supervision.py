"""What the supervisor is told of the work, and when help is asked for an accelerator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from edge_app.domain import Engine, Publisher, WallClock
from edge_app.loop import Job
from edge_app.policy import Rules
from edge_app.service.notify import Notifier
from edge_app.service.plea import AWAY_S, REQUEST, Plea
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
from edge_app.supervision import broker_line, status_line, told
from edge_app.telemetry import Window
from tests.faulty_engine import Echo
from tests.unit.test_notify import Clock

HEALTH = Health(
    window_s=10,
    backend="edgetpu",
    fps=Rates(30, 29.94, 0.4),
    frames=Frames(300, 299, 1, 0, 0),
    latency_ms={"end_to_end": Percentiles(12, 18.23, 20, 25)},
    power=Power(),
    thermal_c=Thermal(),
    throttled=Throttled(),
    accelerator=Accelerator(state="healthy"),
    process=ProcessUse(90, 30),
    spool=SpoolState(),
    mqtt=MqttState(connects=1),
)
AWAY = Accelerator(state="backing_off", cause="no answer")


def test_status_shows_backend_pace_and_broker() -> None:
    assert status_line(HEALTH) == "edgetpu; 29.9 fps, p95 18.2 ms; broker: connected"


def test_status_shows_an_accelerator_that_is_away() -> None:
    away = replace(HEALTH, backend="cpu", accelerator=AWAY)
    assert status_line(away).startswith("cpu (accelerator backing_off); 29.9 fps")


def test_status_of_a_window_without_frames() -> None:
    idle = replace(HEALTH, fps=Rates(0, 0, 0), latency_ms={"end_to_end": None})
    assert status_line(idle) == "edgetpu; 0.0 fps; broker: connected"


@pytest.mark.parametrize(
    ("mqtt", "spool", "line"),
    [
        (MqttState(), SpoolState(), "broker: connecting"),
        (MqttState(connects=3), SpoolState(), "broker: connected for the 3. time"),
        (
            MqttState(connects=1, trouble="Connection refused"),
            SpoolState(queued=7),
            "broker: Connection refused, 7 messages wait",
        ),
    ],
)
def test_the_broker_line(mqtt: MqttState, spool: SpoolState, line: str) -> None:
    assert broker_line(spool, mqtt) == line


@pytest.mark.parametrize(
    ("accelerator", "asks"),
    [(AWAY, True), (Accelerator(state="healthy"), False), (Accelerator(), False)],
    ids=["away", "serves", "none is in use"],
)
def test_help_is_asked_for_an_accelerator_that_stays_away(
    tmp_path: Path, accelerator: Accelerator, asks: bool
) -> None:
    clock = Clock()
    job = Job(
        task="classify",
        model="echo",
        rules=Rules(),
        decode=lambda _outputs, _count: (),
        read_clock=lambda: WallClock(0, synced=None),
        read_health=lambda _window, _now_ns: replace(HEALTH, accelerator=accelerator),
        stats_every_s=10,
    )
    plea = Plea(tmp_path, lambda: True, clock)
    nobody = cast("Publisher", None)  # its state is asked for at the first inference only
    engine: Engine = Echo("cpu")
    read_health = told(job, Notifier(), plea, engine, nobody).read_health
    clock.now_s += AWAY_S
    read_health(Window(0), 0)
    assert (tmp_path / REQUEST).exists() is asks
