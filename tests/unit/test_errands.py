"""The thread for what takes long."""

from __future__ import annotations

import functools
import threading

import pytest

from edge_app.errands import Errands

WAIT_S = 10.0


def test_one_after_the_other_and_a_bounded_number() -> None:
    done: list[int] = []
    started, held, finished = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        started.set()
        held.wait(WAIT_S)

    with Errands() as errands:
        assert errands.add(first)
        assert started.wait(WAIT_S)
        taken = [errands.add(functools.partial(done.append, number)) for number in range(6)]
        assert taken == [True] * 4 + [False] * 2
        held.set()
        while not errands.add(finished.set):
            pass
        assert finished.wait(WAIT_S)
    assert done == [0, 1, 2, 3]


def test_a_bug_in_one_does_not_end_the_next(caplog: pytest.LogCaptureFixture) -> None:
    finished = threading.Event()

    def broken() -> None:
        raise ZeroDivisionError

    with Errands() as errands:
        errands.add(broken)
        errands.add(finished.set)
        assert finished.wait(WAIT_S)
    assert "ZeroDivisionError" in caplog.text


def test_the_end_asks_who_is_at_work_to_give_up_and_skips_the_rest() -> None:
    started, gave_up = threading.Event(), threading.Event()
    skipped: list[int] = []
    errands = Errands()

    def long() -> None:
        started.set()
        if errands.stopping.wait(WAIT_S):
            gave_up.set()

    with errands:
        errands.add(long)
        assert started.wait(WAIT_S)
        errands.add(lambda: skipped.append(1))
    assert gave_up.is_set()
    assert skipped == []
