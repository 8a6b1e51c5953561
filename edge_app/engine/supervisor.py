"""The thread that looks after an accelerator: opens it, tries it out, checks it, gives it up.

It tells `standing` what happened, and does what the state that follows calls for. No frame waits
for any of it, but for a canary that is on the device at that moment.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_app.domain import EngineInfo, PipelinedEngine, Pixels, Tensor
from edge_app.engine.custody import Custody
from edge_app.engine.health import Happening, State
from edge_app.engine.pace import Pace
from edge_app.engine.standing import Standing
from edge_app.errors import EngineError, ModelError

log = logging.getLogger(__name__)

_JOIN_S = 3.0


class Device(PipelinedEngine, Protocol):
    """An engine that takes a while to open and may never answer, such as `child.ChildEngine`."""

    @property
    def pace(self) -> Pace:
        """How long its runs take."""
        ...

    def open(self) -> None:
        """Wait until it is there. Raises EngineError."""
        ...

    def interrupt(self) -> None:
        """Make what waits for the device raise EngineError soon. Called from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Canary:
    """A picture whose answer is known. `fault` says what is wrong with outputs; empty: nothing."""

    pixels: Pixels
    fault: Callable[[list[Tensor]], str]


class Supervisor:
    """Keeps a device open that answers as its `twin` on the CPU does, as far as there is one."""

    def __init__(
        self,
        twin: EngineInfo,
        start: Callable[[], Device],
        canaries: Sequence[Canary],
        standing: Standing,
    ) -> None:
        """Begin to open what `start` returns."""
        self._twin = twin
        self._start = start
        self._canaries = canaries
        self._standing = standing
        self._device: Device | None = None
        self._custody = Custody()
        self._closing = False
        self._thread = threading.Thread(target=self._supervise, name="accelerator", daemon=True)
        self._thread.start()

    @property
    def wants_device(self) -> bool:
        """Whether it waits for the device to be given back."""
        return self._custody.wanted

    def lend(self, patience_s: float) -> Device | None:
        """Give the device to the frames until `take_back`; None when it is not to be had now."""
        if not self._standing.status.serves or not self._custody.borrow(patience_s):
            return None
        if self._device is None or not self._standing.status.serves:
            self._custody.give_back()
            return None
        return self._device

    def take_back(self) -> None:
        """End a loan. A failure must have been reported before."""
        self._custody.give_back()

    def reopen(self, start: Callable[[], Device]) -> None:
        """Open what `start` returns in the device's place, once no frame is on that."""
        old = self._device if self._standing.status.state is State.OPENING else None
        self._start = start
        self._standing.drift.forget()
        self._standing.report(Happening.REOPEN)
        if old is not None:  # it may hang for as long as its bound lets it
            old.interrupt()

    def close(self) -> None:
        """End the device and the thread, within a bound."""
        self._closing = True
        self._standing.wake()
        device = self._device
        if device is not None:
            device.interrupt()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.error("the accelerator's thread did not end within %g s", _JOIN_S)

    # What follows runs in the thread.

    def _supervise(self) -> None:
        while not self._closing:
            match self._standing.status.state:
                case State.OPENING:
                    self._open()
                case State.CANARY:
                    self._try_out()
                case State.BACKING_OFF:
                    self._discard()
                    self._rest(self._standing.status.until_s)
                    self._standing.report(Happening.RESTED)
                case State.PROMOTED | State.HEALTHY:
                    self._watch()
        self._discard()

    def _open(self) -> None:
        try:
            self._device = device = self._start()
            if self._closing:  # `close` may have looked for the device before it was there
                return
            device.open()
            _check_twins(self._twin, device.info)
        except EngineError as error:
            self._fail(error)
        else:
            self._standing.drift.follow(device.pace)
            self._standing.report(Happening.OPENED)

    def _try_out(self) -> None:
        """Run canaries until enough were clean, and judge how long they took."""
        times_ms: list[float] = []
        while self._standing.status.state is State.CANARY and not self._closing:
            start_s = time.monotonic()
            if not self._run_canary(len(times_ms)):
                return
            times_ms.append((time.monotonic() - start_s) * 1e3)
            if len(times_ms) == self._standing.limits.canaries > 1:
                try:
                    self._standing.drift.refuse_slow(statistics.median(times_ms[1:]))  # warm by now
                except EngineError as error:
                    self._fail(error)
                    return
            self._report_clean()

    def _watch(self) -> None:
        """Wait for a failure, and run a canary when one is due."""
        standing = self._standing
        due_s = time.monotonic() + standing.limits.check_every_s
        while standing.status.serves and not self._closing and time.monotonic() < due_s:
            self._rest(min(due_s, standing.status.until_s))
            standing.report(Happening.SERVED)
        if not self._closing and self._run_canary(standing.status.canaries):
            self._report_clean()
            standing.say_if_slow()

    def _run_canary(self, number: int) -> bool:
        """Run one canary; False when it failed, or the device was given up meanwhile."""
        canary = self._canaries[number % len(self._canaries)]
        with self._custody.alone():  # failure reported too: no frame may go to a device that failed
            device = self._device
            status = self._standing.status
            if device is None or not (status.serves or status.state is State.CANARY):
                return False
            try:
                _judge(canary, device.run(canary.pixels))
                self._standing.drift.learn()
            except EngineError as error:
                self._fail(error)
                return False
        return True

    def _discard(self) -> None:
        with self._custody.alone():  # a frame may still be on its way out of the device
            device, self._device = self._device, None
        if device is not None:
            device.close()

    def _rest(self, until_s: float) -> None:
        """Wait until then, or a change, or the end."""
        status = self._standing.status
        self._standing.wait_for(
            lambda: self._closing or self._standing.status is not status,
            max(0.0, until_s - time.monotonic()),
        )

    def _report_clean(self) -> None:
        backend = self._device.info.backend if self._device else ""
        self._standing.report(Happening.CLEAN, backend=backend)

    def _fail(self, error: EngineError) -> None:
        if not self._closing:  # killed on purpose
            self._standing.report(Happening.FAILED, error)


def _judge(canary: Canary, outputs: list[Tensor]) -> None:
    if fault := canary.fault(outputs):
        raise EngineError(
            f"wrong output on a picture whose answer is known: {fault}",
            hint="check the Edge TPU's cable, power and cooling",
        )


def _check_twins(cpu: EngineInfo, device: EngineInfo) -> None:
    """Raise ModelError unless the two take the same pictures and their outputs mean the same."""
    ours = [(spec.shape, spec.dtype, spec.scale, spec.zero_point) for spec in cpu.outputs]
    theirs = [(spec.shape, spec.dtype, spec.scale, spec.zero_point) for spec in device.outputs]
    if cpu.input.shape != device.input.shape or ours != theirs:
        raise ModelError(
            f"the model for the accelerator takes {device.input.shape} and gives {theirs}, its CPU "
            f"twin takes {cpu.input.shape} and gives {ours}",
            hint="fetch or compile both from one source",
        )
