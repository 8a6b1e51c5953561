"""Capture threads and slots, with a camera whose every frame the test hands out."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import numpy as np
import pytest

from edge_app.camera import mailbox
from edge_app.camera.mailbox import Counters, Feed, Mailboxes
from edge_app.domain import Frame
from edge_app.errors import CameraEnded, CameraError, CameraStalled, CorruptFrame

WAIT_S = 10.0


class HandCamera:
    """Gives what the test puts into `hand`: a frame for None, or an error to raise."""

    def __init__(self, name: str = "main", items: int = 0) -> None:
        self.name = name
        self.hand: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.asked = threading.Semaphore(0)  # released when a read begins: the last one is done
        self.closed = False
        self.seq = 0
        for _ in range(items):
            self.hand.put(None)
        if items:
            self.hand.put(CameraEnded("the end"))

    def __enter__(self) -> HandCamera:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def interrupt(self) -> None:
        self.hand.put(CameraEnded("interrupted"))

    def read(self, timeout_s: float) -> Frame:
        self.asked.release()
        try:
            error = self.hand.get(timeout=timeout_s)
        except queue.Empty:
            raise CameraStalled(f"{self.name}: nothing for {timeout_s} s") from None
        if error is not None:
            raise error
        self.seq += 1
        return Frame(self.name, self.seq - 1, time.monotonic_ns(), np.zeros((1, 1, 3), np.uint8))

    def give(self, count: int = 1) -> None:
        """Hand out frames, and wait until the capture thread has dealt with them."""
        for _ in range(count):
            assert self.asked.acquire(timeout=WAIT_S)
            self.hand.put(None)
        assert self.asked.acquire(timeout=WAIT_S)
        self.asked.release()


def numbered(frame: Frame) -> tuple[str, int]:
    return frame.camera, frame.seq


def boxes(
    *cameras: HandCamera, lossless: bool = False, stall_s: float = WAIT_S
) -> Mailboxes[tuple[str, int]]:
    feeds = {
        camera.name: Feed(camera, lossless=lossless, stall_s=stall_s, open_s=stall_s)
        for camera in cameras
    }
    return Mailboxes(feeds, numbered)


def test_the_newest_frame_wins_and_the_lost_are_counted() -> None:
    camera = HandCamera()
    with boxes(camera) as mailboxes:
        camera.give(5)
        assert mailboxes.take(WAIT_S) == ("main", 4)
        assert mailboxes.counters == {"main": Counters(captured=5, dropped=4, corrupt=0)}
        assert mailboxes.take(0) is None
    assert camera.closed


def test_lossless_delivers_every_frame_once_and_then_the_end() -> None:
    with boxes(HandCamera(items=50), lossless=True) as mailboxes:
        for seq in range(50):
            assert mailboxes.take(WAIT_S) == ("main", seq)
        for _ in range(2):
            with pytest.raises(CameraEnded):
                mailboxes.take(WAIT_S)
        assert mailboxes.counters["main"] == Counters(captured=50)


def test_the_last_frame_of_a_live_camera_comes_before_its_failure() -> None:
    camera = HandCamera()
    with boxes(camera) as mailboxes:
        camera.give(1)
        camera.hand.put(CameraError("cable out"))
        mailboxes._threads[0].join(WAIT_S)
        assert mailboxes.take(WAIT_S) == ("main", 0)
        for _ in range(2):
            with pytest.raises(CameraError, match="cable out"):
                mailboxes.take(WAIT_S)


def test_cameras_take_turns() -> None:
    busy, slow = HandCamera("busy"), HandCamera("slow")
    with boxes(busy, slow) as mailboxes:
        for _ in range(3):
            busy.give(3)
            slow.give(1)
            busy.give(3)
            taken = [mailboxes.take(WAIT_S), mailboxes.take(WAIT_S)]
            assert [item[0] for item in taken if item] == ["busy", "slow"]
        assert mailboxes.counters["slow"].dropped == 0


def test_a_busy_camera_does_not_hide_that_another_one_stalls() -> None:
    busy, dead = HandCamera("busy"), HandCamera("dead")
    release = threading.Event()

    def hang(timeout_s: float) -> Frame:
        release.wait()
        raise CameraEnded("freed")

    dead.read = hang  # type: ignore[method-assign]

    def take_until_stall(mailboxes: Mailboxes[tuple[str, int]]) -> None:
        for _ in range(100_000):
            busy.hand.put(None)
            mailboxes.take(WAIT_S)

    feeds = {"busy": Feed(busy), "dead": Feed(dead, stall_s=0.05, open_s=0.05)}
    with Mailboxes(feeds, numbered) as mailboxes:
        with pytest.raises(CameraStalled, match="dead"):
            take_until_stall(mailboxes)
        release.set()


def test_ended_only_when_all_have_ended() -> None:
    with boxes(HandCamera("a", items=1), HandCamera("b", items=2), lossless=True) as mailboxes:
        taken = {mailboxes.take(WAIT_S) for _ in range(3)}
        assert taken == {("a", 0), ("b", 0), ("b", 1)}
        with pytest.raises(CameraEnded):
            mailboxes.take(WAIT_S)


def test_a_stall_the_camera_reports_is_raised() -> None:
    camera = HandCamera()
    camera.hand.put(CameraStalled("main: nothing"))
    with boxes(camera) as mailboxes, pytest.raises(CameraStalled, match="main: nothing"):
        mailboxes.take(WAIT_S)


def test_a_slow_consumer_is_no_stall_of_a_lossless_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = HandCamera(items=3)
    with boxes(camera, lossless=True) as mailboxes:
        assert camera.asked.acquire(timeout=WAIT_S)
        assert camera.asked.acquire(timeout=WAIT_S)  # one in the slot, one waiting for it
        later_ns = time.monotonic_ns() + 3600 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        assert [mailboxes.take(WAIT_S) for _ in range(3)] == [("main", i) for i in range(3)]


def test_corrupt_frames_are_skipped_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    camera = HandCamera()
    with caplog.at_level(logging.INFO), boxes(camera) as mailboxes:
        for _ in range(3):
            camera.hand.put(CorruptFrame("bad.jpg is damaged"))
        camera.hand.put(None)
        assert mailboxes.take(WAIT_S) == ("main", 0)
        assert mailboxes.counters["main"] == Counters(captured=1, corrupt=3)
    assert [record.getMessage() for record in caplog.records] == [
        "camera main: skipping what cannot be decoded: bad.jpg is damaged"
    ]


def test_every_damaged_picture_is_named_up_to_twenty(caplog: pytest.LogCaptureFixture) -> None:
    camera = HandCamera()
    with caplog.at_level(logging.INFO), boxes(camera) as mailboxes:
        for number in [*range(50), *range(50)]:
            camera.hand.put(CorruptFrame(f"{number}.jpg is damaged"))
        camera.hand.put(None)
        assert mailboxes.take(WAIT_S) == ("main", 0)
        assert mailboxes.counters["main"].corrupt == 100
    told = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert told == [f"{number}.jpg is damaged" for number in range(20)]


@pytest.mark.parametrize("where", ["open", "read", "prepare"])
def test_a_bug_in_the_capture_thread_reaches_the_consumer(where: str) -> None:
    camera = HandCamera()

    def broken(*args: object) -> tuple[str, int]:
        raise ZeroDivisionError(where)

    if where == "read":
        camera.hand.put(ZeroDivisionError(where))
    if where == "prepare":
        camera.hand.put(None)
    feed = Feed(BrokenCamera() if where == "open" else camera)
    with (
        Mailboxes({"main": feed}, broken if where == "prepare" else numbered) as mailboxes,
        pytest.raises(ZeroDivisionError, match=where),
    ):
        mailboxes.take(WAIT_S)


class BrokenCamera(HandCamera):
    def __enter__(self) -> HandCamera:
        raise ZeroDivisionError("open")


@pytest.fixture
def interrupting_signal() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Make SIGUSR1 call what the test gives."""
    before = signal.getsignal(signal.SIGUSR1)

    def install(action: Callable[[], None]) -> None:
        def handler(number: int, frame: FrameType | None) -> None:
            action()

        signal.signal(signal.SIGUSR1, handler)

    yield install
    signal.signal(signal.SIGUSR1, before)


def test_wake_from_a_signal_handler_ends_the_wait(
    interrupting_signal: Callable[[Callable[[], None]], None],
) -> None:
    with boxes(HandCamera(), stall_s=60) as mailboxes:
        interrupting_signal(mailboxes.wake)
        timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        assert mailboxes.take(60) is None  # the test's own time limit is shorter than 60 s twice
        timer.join()


def test_a_wake_before_the_take_is_not_lost() -> None:
    with boxes(HandCamera(), stall_s=60) as mailboxes:
        mailboxes.wake()
        assert mailboxes.take(60) is None


def test_closing_frees_a_thread_that_waits_for_its_slot() -> None:
    camera = HandCamera(items=5)
    mailboxes = boxes(camera, lossless=True)
    with mailboxes:
        assert camera.asked.acquire(timeout=WAIT_S)
        assert camera.asked.acquire(timeout=WAIT_S)
    assert not any(thread.is_alive() for thread in mailboxes._threads)


def test_a_hanging_thread_is_left_behind_with_a_complaint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mailbox, "JOIN_S", 0.05)
    camera = HandCamera()
    camera.interrupt = lambda: None  # type: ignore[method-assign]
    mailboxes = boxes(camera, stall_s=60)
    with mailboxes:
        assert camera.asked.acquire(timeout=WAIT_S)
    assert [thread.daemon for thread in mailboxes._threads] == [True]
    assert "its thread hangs" in caplog.text
    camera.hand.put(CameraEnded("freed"))
    mailboxes._threads[0].join(WAIT_S)


def test_a_failure_is_never_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = HandCamera()
    mailboxes = boxes(camera)
    arrived, held = threading.Event(), threading.Event()

    class LateQueue(queue.SimpleQueue[object]):
        def put(self, item: object, *_: object, **_options: object) -> None:
            if threading.current_thread() is mailboxes._threads[0]:
                arrived.set()
                held.wait(WAIT_S)
            super().put(item)

    monkeypatch.setattr(mailboxes, "_ready", LateQueue())
    camera.hand.put(CameraError("cable out"))
    with mailboxes:
        assert arrived.wait(WAIT_S)
        assert mailboxes.take(0.01) is None
        held.set()
        for _ in range(2):
            with pytest.raises(CameraError, match="cable out"):
                mailboxes.take(WAIT_S)


@pytest.mark.parametrize("lossless", [True, False])
def test_an_end_that_is_heard_of_late_is_no_stall(
    monkeypatch: pytest.MonkeyPatch, lossless: bool
) -> None:
    with boxes(HandCamera(items=1), lossless=lossless) as mailboxes:
        assert mailboxes.take(WAIT_S) == ("main", 0)
        mailboxes._threads[0].join(WAIT_S)
        later_ns = time.monotonic_ns() + 3600 * 10**9
        monkeypatch.setattr(time, "monotonic_ns", lambda: later_ns)
        with pytest.raises(CameraEnded):
            mailboxes.take(WAIT_S)


def test_a_live_frame_that_has_to_wait_is_left_out_and_counted() -> None:
    camera = HandCamera()
    waits_s = {"main": 60.0}
    feed = Feed(camera, stall_s=WAIT_S, open_s=WAIT_S)
    with Mailboxes({"main": feed}, numbered, lambda name: waits_s[name]) as mailboxes:
        camera.give(3)
        assert mailboxes.take(0) is None
        newest = mailboxes.newest()["main"]
        assert newest is not None
        assert newest.seq == 2  # there is a frame for whoever asks
        waits_s["main"] = 0.0
        camera.give(1)
        assert mailboxes.take(WAIT_S) == ("main", 3)
        assert mailboxes.counters["main"] == Counters(captured=4, gated=3)


def test_a_recording_waits_and_nothing_of_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "_GATE_S", 0.001)
    asked = threading.Semaphore(0)
    waits_s = {"main": 60.0}

    def wait_s(name: str) -> float:
        asked.release()
        return waits_s[name]

    # A stall bound that the wait exceeds many times over: the camera is not to blame for it.
    feed = Feed(HandCamera(items=5), lossless=True, stall_s=0.005, open_s=0.005)
    with Mailboxes({"main": feed}, numbered, wait_s) as mailboxes:
        for _ in range(20):
            assert asked.acquire(timeout=WAIT_S)
        assert mailboxes.counters["main"] == Counters(captured=1)
        waits_s["main"] = 0.0
        for seq in range(5):
            assert mailboxes.take(WAIT_S) == ("main", seq)
        with pytest.raises(CameraEnded):
            mailboxes.take(WAIT_S)
        assert mailboxes.counters["main"] == Counters(captured=5)


def test_a_gate_that_stays_shut_does_not_keep_it_from_ending() -> None:
    feed = Feed(HandCamera(items=5), lossless=True)
    with Mailboxes({"main": feed}, numbered, lambda _: 1e9) as mailboxes:
        assert mailboxes.take(0) is None
