"""A thousand faults of mixed kinds, one after the other: the rules, the threads, the hand-over.

The device is a double in this process, so that a fault takes milliseconds. The same with real
processes and the real runtime is `tests/integration/test_accelerator.py` and `make soak`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque

from edge_app.domain import Pixels, Tensor
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.health import Limits
from edge_app.engine.pace import Pace
from edge_app.engine.supervisor import Canary
from edge_app.errors import EngineError
from tests.faulty_engine import Echo, picture

FAULTS = 1000
AT_ONCE = Limits(
    canaries=2,
    pause_s=0.001,
    longest_pause_s=0.002,
    settle_s=0.0,
    flaps=10 * FAULTS,
    check_every_s=0.001,
    too_slow=1000.0,
)
KINDS = ("start", "finish", "second", "hang", "wrong", "absent", "reopen")


class Bench:
    """What is wrong with the device, and how many of them are open."""

    def __init__(self) -> None:
        self.fault = ""
        self.open = 0
        self.opened = 0


class Double(Echo):
    """A device in this process that fails as its bench says."""

    ahead = 1

    def __init__(self, bench: Bench) -> None:
        super().__init__("edgetpu")
        self.pace = Pace()
        self._bench = bench
        self._at_work: deque[Pixels] = deque()
        self._interrupted = threading.Event()
        self._finished = 0
        bench.open += 1

    def open(self) -> None:
        self._bench.opened += 1
        if self._bench.fault == "absent":
            raise EngineError("no Edge TPU is attached")

    def start(self, pixels: Pixels) -> None:
        if self._bench.fault == "start":
            raise EngineError("ended while it was idle")
        self._at_work.append(pixels)

    def finish(self) -> list[Tensor]:
        pixels, self._finished = self._at_work.popleft(), self._finished + 1
        match self._bench.fault:
            case "hang":
                self._interrupted.wait(0.002)
                raise EngineError("hangs: a run is not done within its bound")
            case "finish" | "absent":
                raise EngineError("transfer on tag 2 failed")
            case "second" if self._finished % 2:
                raise EngineError("every other run fails")
            case "wrong" if (pixels == picture(0)).all():  # a canary, lest the test be told wrong
                return [255 - output for output in super().run(pixels)]
        return super().run(pixels)

    def run(self, pixels: Pixels) -> list[Tensor]:
        self.start(pixels)
        return self.finish()

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._bench.open -= 1


def _judge(outputs: list[Tensor]) -> str:
    return "" if outputs[0].tolist() == picture(0).reshape(-1).tolist() else "differs"


class Frames:
    """Keeps one picture ahead, as the engine's thread does, and checks every answer."""

    def __init__(self, engine: FailoverEngine) -> None:
        self._engine = engine
        self._sent = 0
        self._at_work: deque[int] = deque()

    def answer(self) -> str:
        """Return who answered the next picture."""
        while len(self._at_work) <= self._engine.ahead:
            self._sent += 1
            self._engine.start(picture(self._sent % 50 + 1))
            self._at_work.append(self._sent % 50 + 1)
        (found,) = self._engine.finish()
        assert found.tolist() == picture(self._at_work.popleft()).reshape(-1).tolist()
        return self._engine.info.backend

    def until(self, backend: str, promotions: int = 0) -> None:
        """Ask until `backend` answers, after so many promotions at least."""
        deadline_s = time.monotonic() + 20
        while self.answer() != backend or self._engine.accelerator().promotions < promotions:
            assert time.monotonic() < deadline_s, self._engine.accelerator()
            time.sleep(0)  # the accelerator's thread has its turn


def test_a_thousand_faults() -> None:
    rng, bench = random.Random(4), Bench()
    engine = FailoverEngine(
        Echo("cpu"), lambda: Double(bench), [Canary(picture(0), _judge)], limits=AT_ONCE
    )
    threads = threading.active_count()
    frames = Frames(engine)
    frames.until("edgetpu")
    reopened = 0
    for number in range(FAULTS):
        kind = rng.choice(KINDS)
        if kind == "reopen":
            engine.reopen(lambda: Double(bench))  # may be over before the next picture
            reopened += 1
        else:
            bench.fault = kind
            frames.until("cpu")
            bench.fault = ""
        frames.until("edgetpu", number + 2)
        assert bench.open == 1
    accelerator = engine.accelerator()
    assert accelerator.promotions == FAULTS + 1
    assert accelerator.fallbacks == FAULTS - reopened
    assert threading.active_count() == threads
    engine.close()
    assert bench.open == 0
