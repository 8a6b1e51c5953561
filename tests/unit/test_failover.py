"""When an accelerator serves: the rules, and the engine that follows them with real processes."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.domain import Event, Tensor
from edge_app.engine.child import Bounds, ChildEngine
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.health import Happening, Limits, State, Status, step
from edge_app.engine.pace import Drift, Pace
from edge_app.engine.supervisor import Canary
from edge_app.errors import EngineError
from tests.conftest import child_processes
from tests.faulty_engine import FACTORY, ROOT, Echo, picture, set_behaviour

# --- the rules ------------------------------------------------------------------------------------

LIMITS = Limits()
Steps = list[tuple[Happening, float, float]]
steps = st.lists(
    st.tuples(st.sampled_from(Happening), st.floats(0, 1000), st.floats(0, 1)), max_size=200
)


def walk(limits: Limits, steps: Steps) -> Iterator[tuple[Status, Status, Happening, float]]:
    """Yield (before, after, what happened, when) for each step; times are since the last one."""
    status, now_s = Status(), 0.0
    for happening, after_s, chance in steps:
        now_s += after_s
        before, status = status, step(limits, status, happening, now_s, chance)
        yield before, status, happening, now_s


def after(*happenings: Happening, limits: Limits = LIMITS, gap_s: float = 0.0) -> Status:
    """Return the status that these lead to, each `gap_s` after the last."""
    visited = [now for _, now, _, _ in walk(limits, [(each, gap_s, 0.0) for each in happenings])]
    return visited[-1]


@given(steps)
def test_only_enough_clean_canaries_in_a_row_promote(steps: Steps) -> None:
    clean = 0
    for before, now, happening, _ in walk(LIMITS, steps):
        if happening is Happening.CLEAN and before.state is State.CANARY:
            clean += 1
        elif happening in (Happening.FAILED, Happening.REOPEN) or now.state is State.OPENING:
            clean = 0
        if now.serves and not before.serves:
            assert (clean, before.state) == (LIMITS.canaries, State.CANARY)
            assert now.promotions == before.promotions + 1
            clean = 0


@given(steps)
def test_any_failure_ends_service_at_once(steps: Steps) -> None:
    for _, now, happening, _ in walk(LIMITS, steps):
        if happening is Happening.FAILED:
            assert now.state is State.BACKING_OFF


@given(steps)
def test_every_pause_is_bounded_and_ends(steps: Steps) -> None:
    for before, now, happening, now_s in walk(LIMITS, steps):
        fell = now.state is State.BACKING_OFF and before.state is not State.BACKING_OFF
        if fell and happening is not Happening.REOPEN:
            pause_s = now.until_s - now_s
            assert (1 - LIMITS.jitter) * LIMITS.pause_s - 1e-6 <= pause_s
            assert pause_s <= LIMITS.flap_pause_s + 1e-6
            assert step(LIMITS, now, Happening.RESTED, now.until_s).state is State.OPENING
            soon = step(LIMITS, now, Happening.RESTED, math.nextafter(now.until_s, 0))
            assert soon.state is State.BACKING_OFF


@given(steps)
def test_opening_anew_on_purpose_is_no_failure(steps: Steps) -> None:
    for before, now, happening, now_s in walk(LIMITS, steps):
        if happening is Happening.REOPEN:
            assert (now.failures, now.falls_s) == (before.failures, before.falls_s)
            if before.state is not State.BACKING_OFF:
                assert step(LIMITS, now, Happening.RESTED, now_s).state is State.OPENING
            else:  # it is held down: no way round that
                assert now == before


@given(steps)
def test_counters_never_fall(steps: Steps) -> None:
    for before, now, _, _ in walk(LIMITS, steps):
        assert now.promotions >= before.promotions
        assert now.canaries >= before.canaries


@given(steps)
def test_a_device_can_always_come_back(steps: Steps) -> None:
    *_, (now, now_s) = [
        (Status(), 0.0),
        *((now, now_s) for _, now, _, now_s in walk(LIMITS, steps)),
    ]
    now = step(LIMITS, now, Happening.RESTED, max(now_s, now.until_s if now.until_s < 1e9 else 0))
    now = step(LIMITS, now, Happening.OPENED, now_s)
    for _ in range(LIMITS.canaries):
        now = step(LIMITS, now, Happening.CLEAN, now_s)
    assert now.serves


def pauses(count: int, chance: float) -> list[float]:
    """Return the pauses of a device that never opens."""
    found, status, now_s = [], Status(), 0.0
    for _ in range(count):
        status = step(LIMITS, status, Happening.FAILED, now_s, chance)
        found.append(status.until_s - now_s)
        now_s = status.until_s
        status = step(LIMITS, status, Happening.RESTED, now_s)
    return found


def test_pauses_grow_up_to_a_bound_and_are_jittered() -> None:
    assert pauses(8, 0.0) == pytest.approx([1, 2, 4, 8, 16, 32, 40, 40])
    assert pauses(3, 1.0) == pytest.approx([0.75, 1.5, 3])
    assert pauses(5000, 0.0)[-1] == pytest.approx(40)  # years of absence overflow nothing


def test_a_device_that_settles_begins_with_short_pauses_again() -> None:
    serving = [Happening.OPENED] + [Happening.CLEAN] * LIMITS.canaries
    failing = [Happening.FAILED, Happening.RESTED] * 4
    settled = after(*failing, *serving, Happening.SERVED, gap_s=50.0)
    assert (settled.state, settled.failures) == (State.PROMOTED, 4)
    settled = step(LIMITS, settled, Happening.SERVED, settled.until_s)
    assert (settled.state, settled.failures) == (State.HEALTHY, 0)
    assert step(LIMITS, settled, Happening.FAILED, 5000.0).until_s == 5000.0 + LIMITS.pause_s


def test_a_flapping_device_is_held_down() -> None:
    status, now_s, held = Status(), 0.0, []
    for _ in range(LIMITS.flaps + 1):
        for happening in [Happening.OPENED] + [Happening.CLEAN] * LIMITS.canaries:
            status = step(LIMITS, status, happening, now_s)
        assert status.serves
        status = step(LIMITS, status, Happening.FAILED, now_s)
        held.append(status.until_s - now_s >= LIMITS.flap_pause_s)
        now_s = status.until_s
        status = step(LIMITS, status, Happening.RESTED, now_s)
    assert held == [False] * (LIMITS.flaps - 1) + [True, True]
    # Long afterwards the falls are forgotten.
    for happening in [Happening.OPENED] + [Happening.CLEAN] * LIMITS.canaries:
        status = step(LIMITS, status, happening, now_s + 10_000)
    status = step(LIMITS, status, Happening.FAILED, now_s + 10_000)
    assert status.until_s - now_s - 10_000 < LIMITS.flap_pause_s


def test_pace_leaves_the_first_run_out_and_forgets() -> None:
    pace = Pace(size=4, every=2)
    pace.add(1000.0)
    assert pace.p99_ms is None
    for _ in range(4):
        pace.add(2.0)
    assert (pace.p95_ms, pace.full) == (2.0, True)
    for _ in range(4):
        pace.add(8.0)
    assert pace.p99_ms == 8.0


def test_drift_is_told_once_until_it_ends() -> None:
    drift = Drift(LIMITS)

    def run(time_ms: float) -> bool:
        for _ in range(300):
            drift.pace.add(time_ms)
            drift.learn()
        return drift.newly_slow()

    assert not run(4.5)
    assert drift.baseline_p95_ms == pytest.approx(4.5)
    assert not run(6.0)
    assert run(10.6)  # a Coral behind USB 2
    assert not run(10.6)
    assert not run(4.5)
    assert run(10.6)
    assert drift.baseline_p95_ms == pytest.approx(4.5)
    drift.refuse_slow(20.0)
    with pytest.raises(EngineError, match="too slow"):
        drift.refuse_slow(30.0)


# --- the engine -----------------------------------------------------------------------------------

FAST = Limits(
    canaries=3,
    pause_s=0.02,
    longest_pause_s=0.2,
    settle_s=0.05,
    flaps=1000,
    flap_pause_s=0.3,
    check_every_s=30.0,
    too_slow=1000.0,
)
BOUNDS = Bounds(open_s=20.0, first_s=20.0, floor_s=0.3, times_p99=3.0)
Start = Callable[..., FailoverEngine]


@pytest.fixture
def behaviour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "behaviour"
    set_behaviour(path)
    return path


def fault(outputs: list[Tensor]) -> str:
    """Judge the canary."""
    return "" if outputs[0].tolist() == picture(0).reshape(-1).tolist() else "differs"


@pytest.fixture
def start(behaviour: Path) -> Iterator[Start]:
    started = []

    def start(
        limits: Limits = FAST, required_within_s: float | None = None, bounds: Bounds = BOUNDS
    ) -> FailoverEngine:
        engine = FailoverEngine(
            Echo("cpu"),
            lambda: ChildEngine(FACTORY, {"behaviour": str(behaviour)}, bounds),
            [Canary(picture(0), fault)],
            limits=limits,
            required_within_s=required_within_s,
        )
        started.append(engine)
        return engine

    yield start
    for engine in started:
        engine.close()
    assert child_processes() == set()


def until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, f"it did not happen: {what}"
        time.sleep(0.005)


def ask(engine: FailoverEngine, seed: int) -> str:
    """Run one picture, insist on its answer, and return who gave it."""
    outputs = engine.run(picture(seed))
    assert [output.tolist() for output in outputs] == [picture(seed).reshape(-1).tolist()]
    return engine.info.backend


def until_served_by(engine: FailoverEngine, backend: str) -> list[str]:
    """Run pictures until `backend` answers; return who answered each."""
    who: list[str] = []

    def answered() -> bool:
        who.append(ask(engine, len(who)))
        return who[-1] == backend

    until(answered, f"served by {backend}: {engine.accelerator()}")
    return who


def until_healthy(engine: FailoverEngine) -> None:
    until(lambda: engine.accelerator().state == "healthy", "healthy")


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_present_at_the_start(start: Start) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    until_healthy(engine)
    accelerator = engine.accelerator()
    assert (accelerator.fallbacks, accelerator.promotions) == (0, 1)
    assert (accelerator.canaries, accelerator.cause) == (FAST.canaries, None)
    assert kinds(engine.events()) == ["promoted"]


def test_absent_at_the_start_and_plugged_in_later(start: Start, behaviour: Path) -> None:
    set_behaviour(behaviour, "absent")
    engine = start()
    until(lambda: engine.accelerator().state == "backing_off")
    assert ask(engine, 1) == "cpu"
    until(lambda: engine.accelerator().state == "opening", "another try")
    set_behaviour(behaviour)
    until_served_by(engine, "edgetpu")
    events = engine.events()
    assert kinds(events) == ["fallback", "promoted"]  # said once, however often it was tried
    assert "no Edge TPU is attached" in events[0].message
    assert events[0].details["hint"] == "plug it in"


@pytest.mark.parametrize("fault", ["abort", "crash", "fail", "hang", "exit"])
def test_lost_while_it_serves(start: Start, behaviour: Path, fault: str) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    until_healthy(engine)
    for seed in range(3):
        assert ask(engine, seed) == "edgetpu"
    engine.events()
    set_behaviour(behaviour, "absent", fault)
    assert ask(engine, 7) == "cpu"  # the very frame it failed on
    assert ask(engine, 8) == "cpu"
    accelerator = engine.accelerator()
    assert accelerator.fallbacks == 1
    assert accelerator.cause
    set_behaviour(behaviour)
    until_served_by(engine, "edgetpu")
    events = engine.events()
    assert kinds(events)[0] == "fallback"
    assert kinds(events)[-1] == "promoted"
    if fault == "abort":
        assert "transfer on tag 2 failed" in str(events[0].details["said"])


def test_killed_while_it_serves(start: Start) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    ((pid, _),) = child_processes()
    os.kill(pid, signal.SIGKILL)
    until_served_by(engine, "cpu")
    until_served_by(engine, "edgetpu")
    assert kinds(engine.events()) == ["promoted", "fallback", "promoted"]


def test_wrong_output_is_found_by_the_periodic_canary(start: Start, behaviour: Path) -> None:
    engine = start(replace(FAST, check_every_s=0.05))
    until_healthy(engine)
    before = engine.accelerator().canaries
    until(lambda: engine.accelerator().canaries > before, "a canary on a healthy device")
    set_behaviour(behaviour, running="wrong")
    until(lambda: engine.accelerator().fallbacks == 1, "found out")
    # It opens well and answers wrongly: never promoted again.
    until(lambda: engine._standing.status.failures > 2, "tried again")
    assert ask(engine, 1) == "cpu"
    assert engine.accelerator().promotions == 1
    assert "wrong output" in (engine.accelerator().cause or "")


def test_a_bouncing_device_is_held_down(start: Start, behaviour: Path) -> None:
    engine = start(replace(FAST, flaps=2, flap_pause_s=600.0))
    for _ in range(2):
        until_served_by(engine, "edgetpu")
        set_behaviour(behaviour, running="fail")
        until_served_by(engine, "cpu")
        set_behaviour(behaviour)
    assert engine.accelerator().state == "backing_off"
    retry_s = engine.events()[-1].details["retry_s"]
    assert isinstance(retry_s, float)
    assert retry_s >= 400


def test_required_and_absent(start: Start, behaviour: Path) -> None:
    set_behaviour(behaviour, "absent")
    with pytest.raises(EngineError, match="no Edge TPU is attached") as caught:
        start(required_within_s=1.0)
    assert caught.value.hint == "plug it in"


def test_required_and_there(start: Start) -> None:
    engine = start(required_within_s=30.0)
    assert ask(engine, 0) == "edgetpu"


def test_required_and_lost_for_good(start: Start, behaviour: Path) -> None:
    engine = start(required_within_s=0.2)
    set_behaviour(behaviour, "absent", "abort")
    assert ask(engine, 0) == "cpu"

    def gives_up() -> bool:
        try:
            ask(engine, 0)
        except EngineError as error:
            return "which is away for" in str(error)
        return False

    until(gives_up, "the end")


def test_opening_and_closing_delay_no_frame(start: Start, behaviour: Path) -> None:
    set_behaviour(behaviour, "hang")
    engine = start()
    until(lambda: engine.accelerator().state == "opening")
    done = [ask(engine, seed) for seed in range(100)]  # while the opening hangs for 20 s
    assert set(done) == {"cpu"}
    assert engine.accelerator().state == "opening"
    closer = threading.Thread(target=engine.close)
    closer.start()
    closer.join(5)
    assert not closer.is_alive()


def test_a_hanging_canary_delays_no_frame(start: Start, behaviour: Path) -> None:
    engine = start(
        replace(FAST, check_every_s=0.05),
        bounds=Bounds(open_s=20.0, first_s=20.0, floor_s=20.0),
    )
    until_healthy(engine)
    set_behaviour(behaviour, running="hang")
    until(behaviour.with_suffix(".hangs").exists, "the canary hangs")
    assert [ask(engine, seed) for seed in range(20)] == ["cpu"] * 20
    assert engine.accelerator().fallbacks == 0  # it still does


def test_two_at_work_are_both_answered_when_it_is_lost(start: Start, behaviour: Path) -> None:
    for fault in ("abort", "fail", "hang"):
        set_behaviour(behaviour)
        engine = start()
        until_served_by(engine, "edgetpu")
        until_healthy(engine)
        set_behaviour(behaviour, "absent", fault)
        for seed in (5, 6):
            engine.start(picture(seed))
        for seed in (5, 6):
            assert engine.finish()[0].tolist() == picture(seed).reshape(-1).tolist()
            assert engine.info.backend == "cpu"
        assert engine.accelerator().fallbacks == 1


def test_pictures_are_answered_in_their_order(start: Start) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    assert engine.ahead == 1
    engine.start(picture(0))
    for seed in range(1, 50):
        engine.start(picture(seed))
        assert engine.finish()[0].tolist() == picture(seed - 1).reshape(-1).tolist()
        assert engine.info.backend == "edgetpu"
    engine.finish()


def test_a_device_without_a_moment_of_rest_is_still_checked(start: Start, behaviour: Path) -> None:
    engine = start(replace(FAST, check_every_s=0.05))
    until_served_by(engine, "edgetpu")
    set_behaviour(behaviour, running="wrong")
    engine.start(picture(0))

    def found_out() -> bool:  # there is always one at work
        engine.start(picture(0))
        engine.finish()
        return engine.accelerator().fallbacks == 1

    until(found_out, "a canary between frames")
    engine.finish()


def test_opened_anew_with_two_at_work(start: Start, behaviour: Path) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    set_behaviour(behaviour, running="slow")
    for seed in (5, 6):
        engine.start(picture(seed))
    engine.reopen(lambda: ChildEngine(FACTORY, {"behaviour": str(behaviour)}, BOUNDS))
    for seed in (5, 6):
        assert engine.finish()[0].tolist() == picture(seed).reshape(-1).tolist()
        assert engine.info.backend == "edgetpu"
    assert engine.ahead == 0
    until_served_by(engine, "edgetpu")
    assert engine.accelerator().fallbacks == 0


def test_opened_anew_without_a_fallback(start: Start, behaviour: Path) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    ((before, _),) = child_processes()
    engine.events()
    arguments = {"behaviour": str(behaviour), "backend": "faster"}
    engine.reopen(lambda: ChildEngine(FACTORY, arguments, BOUNDS))
    who = until_served_by(engine, "faster")
    assert set(who) <= {"cpu", "faster"}  # never again by the old one
    accelerator = engine.accelerator()
    assert (accelerator.fallbacks, accelerator.promotions) == (0, 2)
    assert kinds(engine.events()) == ["reopening", "promoted"]
    assert before not in [pid for pid, _ in child_processes()]


def test_opened_anew_while_it_is_being_opened(start: Start, behaviour: Path) -> None:
    set_behaviour(behaviour, "hang")
    engine = start(bounds=Bounds(open_s=600.0))
    until(behaviour.with_suffix(".hangs").exists, "the opening hangs")
    set_behaviour(behaviour)
    arguments = {"behaviour": str(behaviour), "backend": "faster"}
    engine.reopen(lambda: ChildEngine(FACTORY, arguments, BOUNDS))
    until_served_by(engine, "faster")
    assert engine.accelerator().fallbacks == 0
    assert len(child_processes()) == 1


def test_opened_anew_and_found_absent(start: Start, behaviour: Path) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    engine.events()
    set_behaviour(behaviour, "absent")
    engine.reopen(lambda: ChildEngine(FACTORY, {"behaviour": str(behaviour)}, BOUNDS))
    until(lambda: engine.accelerator().fallbacks == 1, "a fallback")
    assert ask(engine, 1) == "cpu"
    assert kinds(engine.events()) == ["reopening", "fallback"]


def test_twins_must_agree(behaviour: Path) -> None:
    class Other(Echo):
        def __init__(self) -> None:
            super().__init__("cpu")
            spec = self.info.outputs[0]
            scaled = replace(spec, scale=1 / 128)
            self.info = replace(self.info, outputs=(scaled,))

    with pytest.raises(EngineError, match="its CPU twin"):
        FailoverEngine(
            Other(),
            lambda: ChildEngine(FACTORY, {"behaviour": str(behaviour)}, BOUNDS),
            [Canary(picture(0), fault)],
            limits=FAST,
            required_within_s=1.0,
        )


def test_a_picture_that_does_not_fit_is_no_fault_of_the_device(start: Start) -> None:
    engine = start()
    until_served_by(engine, "edgetpu")
    with pytest.raises(EngineError, match="got"):
        engine.run(picture(0)[:2])
    assert ask(engine, 0) == "edgetpu"
    assert engine.accelerator().fallbacks == 0
