"""Which of the captured frames are inferred: the gate, with a clock of its own."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edge_app.settings import Gate


class Clock:
    """Monotonic nanoseconds that the test moves."""

    def __init__(self) -> None:
        self.now_ns = 10**15

    def __call__(self) -> int:
        return self.now_ns


def passed(gate: Gate, clock: Clock, times_s: list[float], camera: str = "main") -> list[float]:
    """Return which of the frames at `times_s` from now pass."""
    start_ns, through = clock.now_ns, []
    for time_s in times_s:
        clock.now_ns = start_ns + round(time_s * 1e9)
        if gate.wait_s(camera) == 0:
            through.append(time_s)
    return through


def every(fps: float, seconds: float) -> list[float]:
    return [number / fps for number in range(round(seconds * fps))]


def test_all_pass_without_a_limit_and_none_while_paused() -> None:
    clock = Clock()
    gate = Gate(clock)
    assert len(passed(gate, clock, every(30, 2))) == 60
    gate.paused = True
    assert passed(gate, clock, every(30, 2)) == []
    assert gate.wait_s("main") == math.inf


@given(st.floats(0.5, 60), st.floats(0.5, 60))
def test_the_rate_is_kept_whatever_the_cameras(fps: float, camera_fps: float) -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.fps = fps
    through = passed(gate, clock, every(camera_fps, 40))
    assert abs(len(through) / 40 - min(fps, camera_fps)) <= 0.1


def test_a_camera_that_is_not_punctual_loses_no_frame_to_a_limit_of_its_own_rate() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.fps = 30
    uneven = [number / 30 - (0.01 if number % 2 else 0) for number in range(300)]
    assert passed(gate, clock, uneven) == uneven


def test_each_camera_has_its_own_turn() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.fps = 1
    assert [gate.wait_s(camera) == 0 for camera in ("a", "b", "a", "b")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_raised_limit_acts_at_once() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.fps = 0.001
    assert len(passed(gate, clock, every(30, 2))) == 1
    gate.fps = 30
    assert len(passed(gate, clock, every(30, 2))) >= 58


def test_the_wait_says_when_a_frame_may_pass() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.fps = 2
    assert gate.wait_s("main") == 0
    wait_s = gate.wait_s("main")
    assert 0 < wait_s <= 0.5
    clock.now_ns += round(wait_s * 1e9) + 1
    assert gate.wait_s("main") == 0
