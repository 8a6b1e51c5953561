"""The engine's thread: each frame one answer, in order, and an accelerator that never waits."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator

import pytest

from edge_app.domain import Engine, Pixels, Tensor
from edge_app.errors import CameraEnded, EngineError
from edge_app.inference import Answer, Inbox, Inference, Prepared
from tests.faulty_engine import Echo, picture

_PATIENCE_S = 20.0


class Script:
    """Frames that are there at once, and then the end of the camera."""

    def __init__(self, count: int) -> None:
        self._left = iter(range(count))

    def take(self, _timeout_s: float) -> Prepared | None:
        seq = next(self._left, None)
        if seq is None:
            raise CameraEnded("no further frame")
        return Prepared("main", seq, 0, picture(seq), 0.0)

    def wake(self) -> None: ...


class Mailbox:
    """Frames that come when the test puts them there."""

    def __init__(self) -> None:
        self.slots: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()

    def put(self, seq: int) -> None:
        self.slots.put(Prepared("main", seq, 0, picture(seq), 0.0))

    def take(self, timeout_s: float) -> Prepared | None:
        try:
            return self.slots.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def wake(self) -> None:
        self.slots.put(None)


class Pipelined(Echo):
    """Notes how many pictures are at work; `gate` holds `finish` up, `fails` ends it."""

    ahead = 1

    def __init__(self) -> None:
        super().__init__("edgetpu")
        self.at_work: list[Pixels] = []
        self.most = 0
        self.started: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False

    def start(self, pixels: Pixels) -> None:
        self.at_work.append(pixels)
        self.most = max(self.most, len(self.at_work))
        self.started.put(None)

    def finish(self) -> list[Tensor]:
        self.gate.wait(_PATIENCE_S)
        if self.fails:
            raise EngineError("it is broken")
        return super().run(self.at_work.pop(0))

    def run(self, pixels: Pixels) -> list[Tensor]:
        assert not self.at_work, "a trial between two frames, not among them"
        return super().run(pixels)


def answers(inbox: Inbox, inference: Inference) -> Iterator[Answer]:
    """Yield what comes, as the loop does, until the end."""
    while (item := inbox.get(timeout=_PATIENCE_S)) is not None:
        assert isinstance(item, Answer)
        inference.concluded()
        yield item


def check(found: list[Answer], count: int) -> None:
    assert [answer.prepared.seq for answer in found] == list(range(count))
    for answer in found:
        assert answer.outputs[0].tolist() == picture(answer.prepared.seq).reshape(-1).tolist()
        assert answer.started_ns <= answer.ended_ns
    for before, after in itertools.pairwise(found):
        assert before.ended_ns <= after.started_ns  # no time is counted twice


@pytest.fixture
def inbox() -> Inbox:
    return queue.SimpleQueue()


@pytest.mark.parametrize("engine", [Echo("cpu"), Pipelined()])
def test_every_frame_is_answered_once_and_in_order(inbox: Inbox, engine: Engine) -> None:
    inference = Inference(Script(50), engine, inbox)
    inference.start()
    check(list(answers(inbox, inference)), 50)
    inference.join()
    with pytest.raises(CameraEnded):
        inference.raise_failure()
    assert engine.info.backend == "cpu" or (isinstance(engine, Pipelined) and engine.most == 2)


def test_the_next_frame_is_there_before_the_first_is_done(inbox: Inbox) -> None:
    engine, frames = Pipelined(), Mailbox()
    engine.gate.clear()
    frames.put(0)
    frames.put(1)
    inference = Inference(frames, engine, inbox)
    inference.start()
    for _ in range(2):
        engine.started.get(timeout=_PATIENCE_S)
    assert inbox.empty()
    engine.gate.set()
    found = [inbox.get(timeout=_PATIENCE_S) for _ in range(2)]
    inference.stop()
    inference.join()
    check([answer for answer in found if isinstance(answer, Answer)], 2)


def test_a_stop_still_answers_what_is_at_work(inbox: Inbox) -> None:
    engine, frames = Pipelined(), Mailbox()
    engine.gate.clear()
    frames.put(0)
    frames.put(1)
    inference = Inference(frames, engine, inbox)
    inference.start()
    for _ in range(2):
        engine.started.get(timeout=_PATIENCE_S)
    inference.stop()
    engine.gate.set()
    inference.join()
    check(list(answers(inbox, inference)), 2)
    inference.raise_failure()  # there is none


def test_an_engine_that_fails_ends_it(inbox: Inbox) -> None:
    engine = Pipelined()
    engine.fails = True
    inference = Inference(Script(5), engine, inbox)
    inference.start()
    inference.join()
    assert list(answers(inbox, inference)) == []
    with pytest.raises(EngineError, match="it is broken"):
        inference.raise_failure()


def test_a_trial_comes_between_frames(inbox: Inbox) -> None:
    engine, frames = Pipelined(), Mailbox()
    inference = Inference(frames, engine, inbox)
    inference.start()
    stopping = threading.Event()

    def flood() -> None:  # there is always a next frame
        frames.put(0)
        for seq in range(10_000):
            if stopping.is_set():
                break
            frames.put(seq)
            inbox.get(timeout=_PATIENCE_S)
            inference.concluded()

    camera = threading.Thread(target=flood)
    camera.start()
    trial = inference.try_out(picture(77), _PATIENCE_S)
    stopping.set()
    camera.join()
    inference.stop()
    inference.join()
    assert trial.outputs[0].tolist() == picture(77).reshape(-1).tolist()
    assert trial.backend == "edgetpu"
