"""What the view makes of messages, ours and other people's."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from edge_app.tools.watch import View, best, figures, table

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
    assert seen is not None
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
    for kind in ("result", "stats", "other"):
        assert view.absorb(f"edge/pi/{kind}", payload) is None
    table(view)
    assert (view.results, view.stats) == ({}, {})


def test_a_device_that_has_gone_is_not_shown_as_alive(capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    view.absorb("edge/pi/result", json.dumps(RESULT).encode())
    view.absorb("edge/pi/status", b"offline")
    Console(width=100).print(table(view))
    shown = capsys.readouterr().out
    assert "offline" in shown
    assert "espresso" not in shown
