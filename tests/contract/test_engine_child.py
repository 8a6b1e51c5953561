"""The engine's promises, kept by a child process, and what a child adds to them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_app.engine.child import Bounds, ChildEngine, ChildFailed
from edge_app.engine.litert import LiteRtEngine
from edge_app.errors import EngineError, ModelError
from tests import faulty_engine, tiny_models
from tests.conftest import child_processes
from tests.contract.test_engine import (
    picture,
    runtime,
    test_a_picture_that_does_not_fit,
    test_closing_twice,
    test_one_engine_used_from_another_thread,
    test_outputs_belong_to_the_caller,
    test_pixels_that_are_a_view,
    test_the_picture_is_not_changed,
    test_the_same_picture_gives_the_same_answer,
    write,
)
from tests.faulty_engine import FACTORY, ROOT, set_behaviour
from tests.leaks import held, leaked, rss_mb

# The engine's promises themselves, from the suite that every engine is held to.
__all__ = [
    "runtime",
    "test_a_picture_that_does_not_fit",
    "test_closing_twice",
    "test_one_engine_used_from_another_thread",
    "test_outputs_belong_to_the_caller",
    "test_pixels_that_are_a_view",
    "test_the_picture_is_not_changed",
    "test_the_same_picture_gives_the_same_answer",
    "write",
]

SHORT = Bounds(open_s=20.0, first_s=20.0, floor_s=0.3, times_p99=8.0)
RESTARTS = int(os.environ.get("SOAK_RESTARTS", "12"))
Open = Callable[..., ChildEngine]


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def until_ended(pid: int) -> None:
    """Wait until a process is gone, or only its parent's knowledge of it is left."""

    def ended() -> bool:
        try:
            return "(zombie)" in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return True

    until(ended)


def load(path: str, runtime: str) -> LiteRtEngine:
    """Open a model in the child."""
    return LiteRtEngine(Path(path), runtime=runtime)


@pytest.fixture(autouse=True)
def children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def engine(runtime: str, write: Callable[[bytes], Path]) -> Iterator[ChildEngine]:
    path = write(tiny_models.reshape_model())
    with closing(ChildEngine(f"{__name__}:load", {"path": str(path), "runtime": runtime})) as child:
        child.open()
        yield child


@pytest.fixture
def behaviour(tmp_path: Path) -> Path:
    path = tmp_path / "behaviour"
    set_behaviour(path)
    return path


@pytest.fixture
def device(behaviour: Path) -> Iterator[Open]:
    opened = []

    def start(opening: str = "well", running: str = "well", bounds: Bounds = SHORT) -> ChildEngine:
        set_behaviour(behaviour, opening, running)
        child = ChildEngine(FACTORY, {"behaviour": str(behaviour)}, bounds)
        opened.append(child)
        return child

    yield start
    for child in opened:
        child.close()


def test_the_child_gives_what_the_same_engine_gives_here(
    engine: ChildEngine, runtime: str, tmp_path: Path
) -> None:
    with closing(LiteRtEngine(tmp_path / "tiny.tflite", runtime=runtime)) as here:
        assert engine.info == here.info
        for seed in range(5):
            pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
            (ours,), (theirs,) = here.run(pixels), engine.run(pixels)
            assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())


def test_a_model_error_in_the_child_is_one_here(runtime: str, tmp_path: Path) -> None:
    path = str(tmp_path / "absent.tflite")
    child = ChildEngine(f"{__name__}:load", {"path": path, "runtime": runtime})
    with closing(child), pytest.raises(ModelError, match=r"absent.*No such file") as caught:
        child.open()
    assert caught.value.hint


def test_an_engine_error_keeps_its_cure(device: Open) -> None:
    with pytest.raises(EngineError, match="no Edge TPU is attached") as caught:
        device("absent").open()
    assert caught.value.hint == "plug it in"
    assert not isinstance(caught.value, ModelError)


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        ("abort", r"ended during opening \(SIGABRT\): F driver/usb/usb_driver.cc:857"),
        ("crash", r"ended during opening \(SIGSEGV\)"),
        ("exit", r"ended during opening \(exit status 3\)"),
    ],
)
def test_a_death_while_opening(device: Open, opening: str, said: str) -> None:
    with pytest.raises(ChildFailed, match=said):
        device(opening).open()


def test_a_bug_in_the_child_is_told_with_its_last_line() -> None:
    child = ChildEngine("tests.faulty_engine:no_device", {})
    with closing(child), pytest.raises(ChildFailed, match="KeyError: 'a bug in the factory'"):
        child.open()


def test_a_hang_while_opening_is_bounded(device: Open) -> None:
    child = device("hang", bounds=Bounds(open_s=1.0))
    with pytest.raises(ChildFailed, match="hangs: opening is not done within its bound"):
        child.open()


@pytest.mark.parametrize(
    ("running", "said"),
    [
        ("abort", r"ended during a run \(SIGABRT\): F driver/usb"),
        ("crash", r"ended during a run \(SIGSEGV\)"),
        ("fail", "EdgeTpuDelegateForCustomOp failed to invoke"),
        ("hang", "hangs: a run is not done within its bound"),
    ],
)
def test_a_failed_run_ends_the_engine(
    device: Open, behaviour: Path, running: str, said: str
) -> None:
    child = device()
    child.open()
    for seed in range(3):
        child.run(faulty_engine.picture(seed))
    set_behaviour(behaviour, running=running)
    with pytest.raises(ChildFailed, match=said):
        child.run(faulty_engine.picture(9))
    set_behaviour(behaviour)
    with pytest.raises(EngineError, match="closed, or has failed"):
        child.run(faulty_engine.picture(10))  # no late answer is taken for this one's


def test_the_next_picture_may_be_sent_ahead(device: Open) -> None:
    child = device(running="slow")
    child.open()
    child.start(faulty_engine.picture(0))
    for seed in range(1, 6):
        child.start(faulty_engine.picture(seed))
        assert child.finish()[0].tolist() == faulty_engine.picture(seed - 1).reshape(-1).tolist()
    child.start(faulty_engine.picture(6))
    with pytest.raises(RuntimeError, match="2 pictures are at work"):
        child.start(faulty_engine.picture(7))


def test_a_failed_run_answers_none_of_those_at_work(device: Open, behaviour: Path) -> None:
    child = device()
    child.open()
    set_behaviour(behaviour, running="fail")
    child.start(faulty_engine.picture(0))
    with contextlib.suppress(ChildFailed):  # the child may have ended by now
        child.start(faulty_engine.picture(1))
    for _ in range(2):
        with pytest.raises(EngineError):
            child.finish()


def test_last_words_are_kept_for_the_event(
    device: Open, behaviour: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")  # as in the service; it would have the last word
    child = device()
    child.open()
    set_behaviour(behaviour, running="abort")
    with pytest.raises(ChildFailed) as caught:
        child.run(faulty_engine.picture(0))
    assert "transfer on tag 2 failed" in caught.value.said
    assert "transfer on tag 2 failed" in str(caught.value)
    assert caught.value.signal == "SIGABRT"


def test_killed_between_two_runs(device: Open) -> None:
    child = device()
    child.open()
    child.run(faulty_engine.picture(0))
    os.kill(child.pid, signal.SIGKILL)
    until_ended(child.pid)
    with pytest.raises(ChildFailed, match="SIGKILL"):
        child.run(faulty_engine.picture(1))


def test_stopped_is_a_hang(device: Open) -> None:
    child = device()
    child.open()
    for seed in range(3):
        child.run(faulty_engine.picture(seed))
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ChildFailed, match="hangs"):
        child.run(faulty_engine.picture(1))
    child.close()  # SIGKILL ends a stopped process too
    assert not Path(f"/proc/{child.pid}").exists()


def test_a_chatty_library_neither_blocks_nor_fills_memory(device: Open) -> None:
    child = device(running="chatter")  # 250 kB a run, four times what a pipe holds
    child.open()
    for seed in range(10):
        (answer,) = child.run(faulty_engine.picture(seed))
        assert answer.tolist() == faulty_engine.picture(seed).reshape(-1).tolist()
    assert sum(map(len, child._output)) < 100_000


def test_interrupt_ends_an_opening_that_waits(device: Open) -> None:
    child = device("hang", bounds=Bounds(open_s=60.0))
    timer = threading.Timer(0.2, child.interrupt)
    timer.start()
    with pytest.raises(ChildFailed, match="SIGKILL"):
        child.open()
    timer.join()


def test_a_slow_start_is_no_hang(device: Open) -> None:
    child = device(running="slow", bounds=Bounds(floor_s=0.01, times_p99=20.0))
    child.open()
    for seed in range(5):  # 50 ms each, against a floor of 10 ms: the device's own pace counts
        child.run(faulty_engine.picture(seed))


@pytest.mark.timeout(7200)
def test_nothing_leaks(device: Open) -> None:
    """Restart after use, death, failure; `make soak` does it a thousand times."""

    def restart(number: int) -> None:
        child = device(running=("well", "abort", "fail")[number % 3])
        child.open()
        if number % 3:
            with pytest.raises(ChildFailed):
                child.run(faulty_engine.picture(number))
        else:
            child.run(faulty_engine.picture(number))
        child.close()

    restart(0)
    before, before_mb = held(), rss_mb()
    for number in range(RESTARTS):
        restart(number)
    assert leaked(before) == (0, 0)
    assert rss_mb() < before_mb + 20
    assert child_processes() == set()


def test_nothing_leaks_of_a_thousand_that_are_given_up_at_once(device: Open) -> None:
    device().close()
    before = held()
    for _ in range(1000):
        device().close()
    assert leaked(before) == (0, 0)
    assert child_processes() == set()


ORPHAN = """
import sys, signal
from edge_app.engine.child import ChildEngine
child = ChildEngine("tests.faulty_engine:open_device", {"behaviour": sys.argv[1]})
print(child.pid, flush=True)
if sys.argv[2] == "open":
    child.open()
    print("open", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("when", ["opening", "idle"])
def test_a_child_does_not_outlive_a_killed_parent(behaviour: Path, when: str) -> None:
    opening = "hang" if when == "opening" else "well"
    set_behaviour(behaviour, opening)
    command = [sys.executable, "-c", ORPHAN, str(behaviour), "open" if when == "idle" else "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if when == "idle":
            assert parent.stdout.readline() == "open\n"
        else:
            until(behaviour.with_suffix(".hangs").exists)
        parent.kill()
        until_ended(pid)


def test_sigterm_ends_a_child(device: Open) -> None:
    child = device()
    child.open()
    os.kill(child.pid, signal.SIGTERM)
    until_ended(child.pid)


def test_pixels_arrive_whole(engine: ChildEngine) -> None:
    (output,) = engine.run(picture(0, 127, 128, 255))
    assert output[:4].tolist() == [-128, -1, 0, 127]
