"""What the view makes of messages, ours and other people's."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from edge_app.tools.watch import Happened, Seen, View, best, figures, table

RESULT = {
    "v": 1,
    "ts": "2026-01-01T00:00:00Z",
    "camera": "main",
    "backend": "cpu",
    "labels": [{"label": "espresso", "score": 0.9, "index": 3}],
}
STATS = {"fps": {"inferred": 9.5}, "latency_ms": {"end_to_end": {"p95": 12.0}}}


def test_a_result_and_a_report_are_shown() -> None:
    view = View()
    seen = view.absorb("edge/pi/result", json.dumps(RESULT).encode())
    assert isinstance(seen, Seen)
    assert best(seen) == ("espresso", "90%")
    assert view.absorb("edge/pi/stats", json.dumps(STATS).encode()) is None
    assert figures(view.stats["pi"]) == ("9.5", "12.0")
    assert table(view).row_count == 1


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"[]", b'{"camera":"x"}', json.dumps(RESULT | {"labels": [{}]}).encode()],
)
def test_what_is_not_ours_is_ignored(payload: bytes) -> None:
    view = View()
    for kind in ("result", "stats", "event", "other"):
        assert view.absorb(f"edge/pi/{kind}", payload) is None
    table(view)
    assert (view.results, view.stats, len(view.events)) == ({}, {}, 0)


def test_a_device_that_has_gone_is_not_shown_as_alive(capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    view.absorb("edge/pi/result", json.dumps(RESULT).encode())
    view.absorb("edge/pi/status", b"offline")
    Console(width=100).print(table(view))
    shown = capsys.readouterr().out
    assert "offline" in shown
    assert "espresso" not in shown


def test_events_are_kept_the_newest_ones() -> None:
    view = View()
    for number in range(9):
        event = {"ts": "t", "event": "fallback", "message": f"the {number}th", "details": {}}
        assert isinstance(view.absorb("edge/pi/event", json.dumps(event).encode()), Happened)
    assert [event.message for _, event in view.events] == [f"the {n}th" for n in range(4, 9)]


def test_a_devices_own_figures_stand_in_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    for camera in ("a", "b"):
        view.absorb("edge/pi/result", json.dumps(RESULT | {"camera": camera}).encode())
    view.absorb("edge/pi/stats", json.dumps(STATS).encode())
    Console(width=100).print(table(view))
    assert capsys.readouterr().out.count("9.5") == 1
