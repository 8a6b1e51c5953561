"""The ladder for a Coral that hangs on its port: what is due, and what is done about it."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.files import runtime_folder
from edge_app.service.ladder import (
    CLIMB_WITHIN_S,
    DAY_S,
    RUNGS,
    Attempt,
    Rung,
    next_rung,
    within_a_day,
)
from edge_app.service.plea import AGAIN_S, AWAY_S, REQUEST, Plea
from edge_app.tools.usb_reset import hub_and_port, main, read_history
from tests.unit.test_devices import Machine

NOW_S = 1_800_000_000.0
BUDGETS = {Rung.RESET: 3, Rung.POWER: 2, Rung.REBOOT: 1}


def due(*history: tuple[Rung, float], able: Sequence[Rung] = RUNGS) -> Rung | None:
    """Return what is due after attempts of so many seconds ago."""
    attempts = [Attempt(rung, NOW_S - ago_s) for rung, ago_s in history]
    return next_rung(attempts, NOW_S, BUDGETS, able)


def test_the_first_rung_comes_first() -> None:
    assert due() is Rung.RESET


def test_what_did_not_help_leads_higher() -> None:
    assert due((Rung.RESET, 600)) is Rung.POWER
    assert due((Rung.RESET, 1200), (Rung.POWER, 600)) is Rung.REBOOT


def test_a_rung_that_is_lacking_is_passed_over() -> None:
    assert due((Rung.RESET, 600), able=(Rung.RESET, Rung.REBOOT)) is Rung.REBOOT


def test_above_the_last_rung_there_is_a_rest() -> None:
    last = (Rung.REBOOT, 600.0)
    assert due(last) is None
    assert due((Rung.REBOOT, CLIMB_WITHIN_S + 1)) is Rung.RESET


def test_what_helped_for_a_while_is_tried_again() -> None:
    assert due((Rung.RESET, CLIMB_WITHIN_S + 1)) is Rung.RESET


def test_a_spent_budget_leads_higher_and_is_whole_after_a_day() -> None:
    hours = [(Rung.RESET, hour * 3600.0) for hour in (7, 5, 3)]
    assert due(*hours) is Rung.POWER
    assert due(*[(rung, ago_s + DAY_S) for rung, ago_s in hours]) is Rung.RESET


def test_a_clock_that_was_ahead_does_not_free_a_budget() -> None:
    assert due((Rung.REBOOT, -7200), (Rung.RESET, 600), able=(Rung.RESET, Rung.REBOOT)) is None


@given(
    st.lists(st.floats(60, 7200), max_size=150),
    st.fixed_dictionaries({rung: st.integers(0, 4) for rung in RUNGS}),
    st.sets(st.sampled_from(RUNGS)),
)
def test_no_budget_is_ever_exceeded(
    pauses_s: list[float], a_day: dict[Rung, int], able: set[Rung]
) -> None:
    history: list[Attempt] = []
    for now_s in itertools.accumulate(pauses_s, initial=NOW_S):
        rung = next_rung(history, now_s, a_day, able)
        if rung is None:
            continue
        assert rung in able
        history.append(Attempt(rung, now_s))
        same = [attempt for attempt in within_a_day(history, now_s) if attempt.rung is rung]
        assert len(same) <= a_day[rung]


class Rig:
    """A machine with the oneshot's files, and with programs that note what they were asked."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(root)
        self.request, self.history = root / REQUEST, root / "history.json"
        self._bin, self._calls = root / "bin", root / "calls"
        self._bin.mkdir()
        self._calls.touch()
        monkeypatch.setenv("PATH", f"{self._bin}:/usr/bin:/bin")
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        self.install("systemctl")

    def install(self, program: str, exit_status: int = 0) -> None:
        path = self._bin / program
        path.write_text(f'#!/bin/sh\necho {program} "$@" >> {self._calls}\nexit {exit_status}\n')
        path.chmod(0o755)

    def tried(self, *rungs: Rung, ago_s: float) -> None:
        at_s = time.time() - ago_s
        lines = [f'{{"rung":"{rung}","at_s":{at_s}}}' for rung in rungs]
        self.history.write_text(f"[{','.join(lines)}]")

    def run(self, *more: str) -> tuple[int, list[str], list[Rung]]:
        """Ask, run the oneshot; return its exit code, what it called, and the history."""
        self.request.touch()
        places = ["--request", self.request, "--history", self.history]
        places += ["--sysfs", self.machine.sysfs, "--dev", self.machine.dev]
        code = main([*map(str, places), "--settle-s=0", *more])
        assert not self.request.exists()
        calls = self._calls.read_text().splitlines()
        return code, calls, [attempt.rung for attempt in read_history(self.history)]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_without_a_coral_nothing_is_spent(rig: Rig) -> None:
    rig.machine.plug_in("1-1", ids="0781:5581")  # a memory stick
    assert rig.run() == (0, [], [])


def test_a_reset_is_noted_and_its_failure_said(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.machine.plug_in("1-1.4")
    code, calls, history = rig.run()  # the node is a plain file here: no ioctl takes it
    assert (code, calls, history) == (1, [], [Rung.RESET])
    assert "cannot be reset" in caplog.text


def test_power_is_switched_at_the_corals_port(rig: Rig) -> None:
    rig.install("uhubctl")
    rig.machine.plug_in("1-1.4")
    rig.tried(Rung.RESET, ago_s=600)
    code, calls, history = rig.run()
    assert (code, history) == (0, [Rung.RESET, Rung.POWER])
    assert calls == ["uhubctl -a cycle -d 3 -l 1-1 -p 4"]


def test_a_hub_that_cannot_is_said(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.install("uhubctl", exit_status=1)
    rig.machine.plug_in("2-1")
    rig.tried(Rung.RESET, ago_s=600)
    assert rig.run()[0] == 1
    assert "exit status 1" in caplog.text


def test_no_reboot_unless_it_is_allowed(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.machine.plug_in("2-1")
    rig.tried(Rung.RESET, Rung.POWER, ago_s=600)
    assert rig.run()[:2] == (0, [])
    assert "nothing left to try" in caplog.text
    code, calls, history = rig.run("--reboots", "1")
    assert (code, calls) == (0, ["systemctl reboot"])
    assert history == [Rung.RESET, Rung.POWER, Rung.REBOOT]
    assert rig.run("--reboots", "1")[1] == ["systemctl reboot"]  # not a second time


def test_a_reboot_is_noted_before_it_happens(rig: Rig, tmp_path: Path) -> None:
    rig.machine.plug_in("2-1")
    rig.tried(Rung.POWER, ago_s=600)
    rig._bin.joinpath("systemctl").write_text(f"#!/bin/sh\ncp {rig.history} {tmp_path}/then\n")
    rig.run("--reboots", "1")
    assert "reboot" in (tmp_path / "then").read_text()


@pytest.mark.parametrize("text", ["", "[{]", '[{"rung":"dance","at_s":1}]', "null", '{"a":1}'])
def test_a_damaged_history_is_said_and_begun_anew(
    rig: Rig, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.machine.plug_in("2-1")
    rig.history.write_text(text)
    assert rig.run()[2] == [Rung.RESET]
    assert "what was tried before is lost" in caplog.text


@pytest.mark.parametrize(
    ("name", "hub", "port"), [("1-1.4", "1-1", "4"), ("2-3", "2", "3"), ("1-1.2.7", "1-1.2", "7")]
)
def test_the_kernels_name_is_uhubctls(name: str, hub: str, port: str) -> None:
    assert hub_and_port(name) == (hub, port)


class Asking:
    """A plea with a clock, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 0.0
        self.there = True
        self.file = folder / REQUEST
        self.plea = Plea(folder, lambda: self.there, lambda: self.now_s)

    def after(self, seconds: float, *, serves: bool = False) -> bool:
        """Let time pass; whether it asked. The request is taken away, as the oneshot does."""
        self.now_s += seconds
        self.plea.see(serves=serves)
        asked = self.file.exists()
        self.file.unlink(missing_ok=True)
        return asked


def test_help_is_asked_for_when_it_stays_away_and_again_later(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    assert not asking.after(AWAY_S - 1)
    assert asking.after(1)
    assert not asking.after(AGAIN_S - 1)
    assert asking.after(1)


def test_one_that_serves_now_and_then_is_left_alone(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    for _ in range(10):
        assert not asking.after(AWAY_S - 1)
        assert not asking.after(1, serves=True)


def test_one_that_was_pulled_out_is_left_alone(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    asking.there = False
    assert not asking.after(10 * AWAY_S)
    asking.there = True  # and has its time to come back, once it is plugged in
    assert not asking.after(AWAY_S - 1, serves=False)
    assert asking.after(1)


def test_nobody_is_asked_outside_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert runtime_folder({}) is None
    assert runtime_folder({"RUNTIME_DIRECTORY": "/run/edge-app"}) == Path("/run/edge-app")
    with caplog.at_level(logging.WARNING):
        Plea(None, lambda: True).ask()
        assert caplog.text == ""
        Plea(tmp_path / "gone", lambda: True).ask()  # no crash
        assert "cannot ask" in caplog.text
