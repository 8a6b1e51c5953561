"""What counts as an appliance that works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_app.errors import EdgeAppError
from edge_app.tools.baseline import Baseline
from edge_app.tools.health import Wanted, faults_of, restarts_between
from edge_app.tools.heard import Heard
from edge_app.tools.unit import Unit

SINCE_MS = 1_000
RUNNING = Unit("active (running)", pid=100, restarts=0)


def result(uptime_ms: int = 2_000, backend: str = "cpu") -> bytes:
    record = {"uptime_ms": uptime_ms, "backend": backend, "model": "m", "labels": []}
    return json.dumps(record).encode()


def stats(
    uptime_ms: int = 2_000, backend: str = "cpu", p95_ms: float | None = 20.0, fps: float = 5.0
) -> bytes:
    latency = None if p95_ms is None else {"p95": p95_ms}
    record = {
        "uptime_ms": uptime_ms,
        "backend": backend,
        "fps": {"inferred": fps},
        "latency_ms": {"end_to_end": latency},
    }
    return json.dumps(record).encode()


def heard(*messages: tuple[str, bytes]) -> Heard:
    found = Heard(SINCE_MS)
    for kind, payload in messages:
        found.absorb(f"edge/porch/{kind}", payload)
    return found


WORKING = (("status", b"online"), ("stats", stats()), ("result", result()))


def test_a_working_appliance_has_no_fault() -> None:
    assert faults_of(heard(*WORKING), Wanted()) == []
    assert faults_of(heard(*WORKING), Wanted(backend="cpu")) == []


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ((("status", b"offline"), *WORKING[1:]), "offline of its status"),
        (WORKING[1:], "nothing of its status"),
        (WORKING[:2], "no fresh result"),
        ((*WORKING[:2], ("result", result(uptime_ms=SINCE_MS - 1))), "no fresh result"),
        ((WORKING[0], WORKING[2]), "no fresh report"),
        ((WORKING[0], WORKING[2], ("stats", stats(fps=0.0))), "no fresh report"),
        ((WORKING[0], WORKING[2], ("stats", stats(uptime_ms=0))), "no fresh report"),
        ((*WORKING, ("result", b"\xff{")), ""),
    ],
)
def test_what_is_missing_is_said(messages: tuple[tuple[str, bytes], ...], fault: str) -> None:
    faults = faults_of(heard(*messages), Wanted())
    assert len(faults) == bool(fault)
    assert fault in "".join(faults)


def test_a_paused_appliance_is_not_called_broken() -> None:
    about = {"versions": {"edge_app": "1"}, "model": {"name": "m"}, "settings": {"paused": True}}
    (fault,) = faults_of(heard(WORKING[0], ("info", json.dumps(about).encode())), Wanted())
    assert "paused" in fault


def test_a_broker_that_is_away_is_the_one_fault() -> None:
    unheard = heard()
    unheard.trouble = "broker h:1883: no answer"
    assert faults_of(unheard, Wanted()) == ["broker h:1883: no answer"]


def test_the_backend_that_counts_is_the_newest() -> None:
    promoted = heard(*WORKING, ("stats", stats(uptime_ms=3_000, backend="edgetpu", p95_ms=5.0)))
    assert faults_of(promoted, Wanted(backend="edgetpu")) == []
    assert promoted.p95_ms("edgetpu") == 5.0
    fallen_back = heard(*WORKING, ("result", result(uptime_ms=4_000)))
    assert faults_of(fallen_back, Wanted(backend="edgetpu")) == ["cpu computes; allowed: edgetpu"]


def test_the_best_window_counts() -> None:
    noisy = heard(*WORKING, ("stats", stats(p95_ms=90.0)), ("stats", stats(p95_ms=None)))
    assert noisy.p95_ms("") == 20.0


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        (RUNNING, ""),
        (Unit("active (running)", pid=101, restarts=1), "it was restarted"),
        (Unit("activating (auto-restart)", pid=0, restarts=1), "the unit is activating"),
        (Unit("failed (failed)", pid=0, restarts=0), "the unit is failed"),
    ],
)
def test_a_restart_while_it_is_watched_is_a_fault(after: Unit, fault: str) -> None:
    faults = restarts_between(RUNNING, after)
    assert len(faults) == bool(fault)
    assert fault in "".join(faults)


def test_a_baseline_is_the_best_so_far_and_never_rises(tmp_path: Path) -> None:
    baseline = Baseline(tmp_path / "baseline.json")
    assert baseline.judge("m cpu", 100.0, 1.5) == []
    assert baseline.judge("m cpu", 140.0, 1.5) == []
    (fault,) = baseline.judge("m cpu", 160.0, 1.5)  # though not half slower than the 140 ms
    assert "p95 is 160.0 ms; allowed: 150.0 ms" in fault
    assert baseline.judge("m cpu", 80.0, 1.5) == []
    assert "allowed: 120.0 ms" in baseline.judge("m cpu", 130.0, 1.5)[0]
    assert baseline.judge("m edgetpu", 130.0, 1.5) == []


def test_a_few_milliseconds_more_are_noise(tmp_path: Path) -> None:
    baseline = Baseline(tmp_path / "baseline.json")
    assert baseline.judge("m edgetpu", 3.0, 1.5) == []
    assert baseline.judge("m edgetpu", 9.0, 1.5) == []
    assert baseline.judge("m edgetpu", 14.0, 1.5) != []


def test_a_damaged_baseline_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text("{")
    with pytest.raises(EdgeAppError, match=r"baseline\.json"):
        Baseline(path).judge("m cpu", 1.0, 1.5)
