"""An accelerator that may fail at any time, with a CPU engine always ready to answer for it.

`run` answers every picture exactly once. Opening, probing and trying out happen in a thread of
their own, which tells `health.step` what happened and does what the state it returns calls for.
"""

from __future__ import annotations

import logging
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_app.domain import Accelerator, Engine, EngineInfo, Event, Pixels, Tensor
from edge_app.engine.child import ChildFailed
from edge_app.engine.health import Happening, Limits, State, Status, step
from edge_app.engine.pace import Drift
from edge_app.errors import EngineError, ModelError

log = logging.getLogger(__name__)

Details = dict[str, str | int | float | None]

_JOIN_S = 3.0
_TRIES_AT_START = 2  # a first open, which uploads firmware, may fail where a second one succeeds
_MAX_EVENTS = 100


class Device(Engine, Protocol):
    """An engine that takes a while to open and may never answer, such as `child.ChildEngine`."""

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


class FailoverEngine:
    """Runs on the accelerator while that is fit, on the CPU otherwise.

    `info` is that of the engine that answered last. With `required_within_s`, running on the CPU is
    a makeshift: when the accelerator stays away for longer, `run` raises.
    """

    def __init__(
        self,
        cpu: Engine,
        start: Callable[[], Device],
        canaries: Sequence[Canary],
        *,
        limits: Limits | None = None,
        required_within_s: float | None = None,
    ) -> None:
        """Begin to open what `start` returns, in the background.

        When it is required, wait for it, and raise the EngineError it failed with.
        """
        self._cpu = cpu
        self._start = start
        self._canaries = canaries
        self._limits = limits or Limits()
        self._required_within_s = required_within_s
        self._answered: Engine = cpu
        self._device: Device | None = None
        self._in_use = threading.Lock()  # held while the device runs
        self._changed = threading.Condition()  # guards what follows
        self._status = Status()
        self._failure: EngineError | None = None
        self._lost_s = time.monotonic()
        self._fallbacks = 0
        self._closing = False
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._drift = Drift(self._limits)
        self._thread = threading.Thread(target=self._supervise, name="accelerator", daemon=True)
        self._thread.start()
        if required_within_s is not None:
            self._await_service()

    def settle(self) -> None:
        """Wait until the accelerator serves or has failed once; either takes a bounded time."""
        with self._changed:
            self._changed.wait_for(lambda: self._status.serves or self._status.failures)

    @property
    def info(self) -> EngineInfo:
        return self._answered.info

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Infer on `pixels`; see `domain.Engine.run`.

        Raises EngineError for a picture that does not fit, when the CPU engine fails, and when a
        required accelerator stays away.
        """
        fits = pixels.shape == self._cpu.info.input.shape[1:] and pixels.dtype == "uint8"
        outputs = self._try_device(pixels) if fits and self._status.serves else None
        if outputs is None:
            self._check_required()
            outputs = self._cpu.run(pixels)
            self._answered = self._cpu
        return outputs

    def events(self) -> list[Event]:
        """Take what happened since the last call."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def accelerator(self) -> Accelerator:
        """Say how the accelerator fares."""
        with self._changed:
            status, failure = self._status, self._failure
            return Accelerator(
                fallbacks=self._fallbacks,
                promotions=status.promotions,
                state=status.state.value,
                canaries=status.canaries,
                baseline_p95_ms=_rounded(self._drift.baseline_p95_ms),
                p95_ms=_rounded(self._drift.pace.p95_ms),
                cause=None if status.serves or failure is None else str(failure),
            )

    def close(self) -> None:
        """End the device and its thread, within a bound, and close the CPU engine."""
        with self._changed:
            self._closing = True
            device = self._device
            self._changed.notify_all()
        if device is not None:
            device.interrupt()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.error("the accelerator's thread did not end within %g s", _JOIN_S)
        self._cpu.close()

    def _try_device(self, pixels: Pixels) -> list[Tensor] | None:
        """Return the device's answer, or None when the CPU must answer."""
        # A canary may be running: waiting for it is quicker than the CPU, unless the device hangs.
        if not self._in_use.acquire(timeout=self._drift.patience_s):
            return None
        try:
            device = self._device
            if device is None or not self._status.serves:
                return None
            outputs = self._timed(device, pixels)
        except EngineError as error:
            self._report(Happening.FAILED, error)
            return None
        else:
            self._answered = device
            return outputs
        finally:
            self._in_use.release()

    def _timed(self, device: Device, pixels: Pixels) -> list[Tensor]:
        start_ns = time.monotonic_ns()
        outputs = device.run(pixels)
        self._drift.add((time.monotonic_ns() - start_ns) / 1e6)
        return outputs

    def _check_required(self) -> None:
        if self._required_within_s is None:
            return
        with self._changed:
            away_s = 0.0 if self._status.serves else time.monotonic() - self._lost_s
            failure = self._failure
        if failure is not None and away_s > self._required_within_s:
            raise EngineError(
                f'model.backend is "edgetpu", which is away for {away_s:.0f} s: {failure}',
                hint=failure.hint or 'set model.backend = "auto" to go on without it',
            )

    def _await_service(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._status.serves or self._status.failures >= _TRIES_AT_START
            )
            failure = None if self._status.serves else self._failure
        if failure is not None:
            self.close()
            raise failure

    # What follows runs in the accelerator's thread.

    def _supervise(self) -> None:
        while not self._closing:
            match self._status.state:
                case State.OPENING:
                    self._open()
                case State.CANARY:
                    self._try_out()
                case State.BACKING_OFF:
                    self._discard()
                    self._rest(self._status.until_s)
                    self._report(Happening.TIME)
                case State.PROMOTED | State.HEALTHY:
                    self._watch()
        self._discard()

    def _open(self) -> None:
        try:
            device = self._start()
            with self._changed:
                self._device = device
                if self._closing:
                    return
            device.open()
            _check_twins(self._cpu.info, device.info)
        except EngineError as error:
            self._report(Happening.FAILED, error)
        else:
            self._drift.restart()
            self._report(Happening.OPENED)

    def _try_out(self) -> None:
        """Run canaries until enough were clean, and judge how long they took."""
        times_ms: list[float] = []
        while self._status.state is State.CANARY and not self._closing:
            start_s = time.monotonic()
            if not self._run_canary(len(times_ms)):
                return
            times_ms.append((time.monotonic() - start_s) * 1e3)
            if len(times_ms) == self._limits.canaries > 1:
                try:
                    self._drift.refuse_slow(statistics.median(times_ms[1:]))  # one warms up
                except EngineError as error:
                    self._report(Happening.FAILED, error)
                    return
            self._report(Happening.CLEAN)

    def _watch(self) -> None:
        """Wait for a failure, and run a canary when one is due."""
        due_s = time.monotonic() + self._limits.check_every_s
        while self._status.serves and not self._closing and time.monotonic() < due_s:
            self._rest(min(due_s, self._status.until_s))
            self._report(Happening.TIME)
        if not self._closing and self._run_canary(self._status.canaries):
            self._report(Happening.CLEAN)
            self._say_if_slow()

    def _run_canary(self, number: int) -> bool:
        """Run one canary; False when it failed, or the device was given up meanwhile."""
        canary = self._canaries[number % len(self._canaries)]
        with self._in_use:  # also while it is reported: no frame may go to a device that failed
            device = self._device
            if device is None or self._status.state is State.BACKING_OFF:
                return False
            try:
                _judge(canary, self._timed(device, canary.pixels))
            except EngineError as error:
                self._report(Happening.FAILED, error)
                return False
        return True

    def _discard(self) -> None:
        with self._in_use:  # a frame may still be on its way out of the device
            device, self._device = self._device, None
        if device is not None:
            device.close()

    def _rest(self, until_s: float) -> None:
        """Wait until then, or a change, or the end."""
        with self._changed:
            status = self._status
            self._changed.wait_for(
                lambda: self._closing or self._status is not status,
                max(0.0, until_s - time.monotonic()),
            )

    def _report(self, happening: Happening, error: EngineError | None = None) -> None:
        """Take the step that `happening` asks for, and say what changed. Called from any thread."""
        with self._changed:
            before, now_s = self._status, time.monotonic()
            chance = random.random()  # noqa: S311  # jitter
            self._status = after = step(self._limits, before, happening, now_s, chance)
            if self._closing or after.state is before.state:
                return
            if error is not None:
                self._say_failed(before, error, after.until_s - now_s)
            elif after.serves and not before.serves:
                self._say_promoted(after)
            self._changed.notify_all()

    def _say_failed(self, before: Status, error: EngineError, pause_s: float) -> None:
        # Without the traceback, which would keep the picture and the dead child in memory.
        last, self._failure = self._failure, error.with_traceback(None)
        if before.serves or last is None:
            kind, self._lost_s = "fallback", time.monotonic()
            self._fallbacks += 1
        elif str(last) != str(error):
            kind = "probe_failed"
        else:  # the same as last time: said once
            log.debug("accelerator: %s; next try in %.1f s", str(error), pause_s)
            return
        log.warning("accelerator: %s; the CPU answers; next try in %.1f s", str(error), pause_s)
        details: Details = {
            "backend": "cpu",
            "cause": str(error),
            "hint": error.hint,
            "said": error.said if isinstance(error, ChildFailed) else "",
            "retry_s": round(pause_s, 1),
        }
        self._events.append(Event(kind, f"the CPU answers: {error}", details))

    def _say_promoted(self, after: Status) -> None:
        away_s = time.monotonic() - self._lost_s
        message = f"the accelerator serves after {self._limits.canaries} clean canaries"
        log.info("accelerator: %s", message)
        details: Details = {
            "backend": self._device.info.backend if self._device else "",
            "away_s": round(away_s, 1),
            "promotions": after.promotions,
        }
        self._events.append(Event("promoted", message, details))

    def _say_if_slow(self) -> None:
        if not self._drift.newly_slow():
            return
        baseline_ms, p95_ms = self._drift.baseline_p95_ms, self._drift.pace.p95_ms
        message = f"the accelerator has become slow: p95 {p95_ms:.1f} ms, was {baseline_ms:.1f} ms"
        log.warning("%s", message)
        details: Details = {"baseline_p95_ms": _rounded(baseline_ms), "p95_ms": _rounded(p95_ms)}
        self._events.append(Event("accelerator_slow", message, details))


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


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 2)
