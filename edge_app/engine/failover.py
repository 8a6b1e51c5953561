"""An accelerator that may fail at any time, with a CPU engine always ready to answer for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_app.domain import Engine, EngineInfo, Event, Pixels, Tensor
from edge_app.engine.health import Happening, Limits
from edge_app.engine.shared import SLOTS
from edge_app.engine.standing import Standing
from edge_app.engine.supervisor import Canary, Device, Supervisor
from edge_app.errors import EngineError
from edge_app.stats import Accelerator

_TRIES_AT_START = 2  # a first open, which uploads firmware, may fail where a second one succeeds


@dataclass(slots=True)
class _AtWork:
    pixels: Pixels
    on_device: bool = False


class FailoverEngine:
    """Runs on the accelerator while that is fit, on the CPU otherwise; answers each picture once.

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
        self._required_within_s = required_within_s
        self._answered: Engine = cpu
        self._at_work: deque[_AtWork] = deque()
        self._device: Device | None = None  # on loan while pictures are on it
        self._standing = Standing(limits or Limits())
        self._supervisor = Supervisor(cpu.info, start, canaries, self._standing)
        if required_within_s is not None:
            self._await_service()

    def settle(self) -> None:
        """Wait until the accelerator serves or has failed once; either takes a bounded time."""
        standing = self._standing
        standing.wait_for(lambda: standing.status.serves or standing.status.failures)

    @property
    def info(self) -> EngineInfo:
        return self._answered.info

    @property
    def ahead(self) -> int:
        """See `domain.PipelinedEngine`. For the CPU a picture taken early would only be older."""
        return SLOTS - 1 if self._standing.status.serves else 0

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Infer on `pixels`; see `domain.Engine.run`. Raises as `finish` does."""
        self.start(pixels)
        return self.finish()

    def start(self, pixels: Pixels) -> None:
        """Take one more picture; see `domain.PipelinedEngine`. Raises nothing."""
        self._at_work.append(_AtWork(pixels))
        self._feed(0.0)

    def finish(self) -> list[Tensor]:
        """Answer the picture that was started first, on the CPU if the device did not.

        Raises EngineError for a picture that does not fit, when the CPU engine fails, and when a
        required accelerator stays away.
        """
        # A canary may be running: waiting for it is quicker than the CPU, unless the device hangs.
        self._feed(self._standing.drift.patience_s)
        work = self._at_work.popleft()
        outputs = self._collect() if work.on_device else None
        if outputs is None:
            self._check_required()
            outputs = self._cpu.run(work.pixels)
            self._answered = self._cpu
        return outputs

    def reopen(self, start: Callable[[], Device]) -> None:
        """Open what `start` returns in the accelerator's place, because its settings changed.

        Returns at once. The CPU answers from the next picture on, until the new one has passed its
        canaries; that is no fallback. An accelerator that is away stays so until its next try.
        """
        self._supervisor.reopen(start)

    def events(self) -> list[Event]:
        """Take what happened since the last call."""
        return self._standing.events()

    def accelerator(self) -> Accelerator:
        """Say how the accelerator fares."""
        return self._standing.accelerator()

    def close(self) -> None:
        """End the device and its thread, within a bound, and close the CPU engine."""
        self._at_work.clear()
        self._return_idle()
        self._supervisor.close()
        self._cpu.close()

    def _feed(self, patience_s: float) -> None:
        """Hand what waits to the device, in order, as far as it can be had within `patience_s`."""
        for work in self._at_work:
            if not work.on_device and not self._hand_over(work, patience_s):
                break
        self._return_idle()

    def _hand_over(self, work: _AtWork, patience_s: float) -> bool:
        if self._device is None:
            self._device = self._supervisor.lend(patience_s)
        elif self._supervisor.wants_device:  # it comes first
            return False
        if self._device is None or not self._fits(work.pixels):
            return False
        try:
            self._device.start(work.pixels)
        except EngineError as error:
            self._lose(error)
            return False
        work.on_device = True
        return True

    def _collect(self) -> list[Tensor] | None:
        """Return the device's next outputs, or None when it failed."""
        device = self._device
        if device is None:
            return None
        try:
            outputs = device.finish()
        except EngineError as error:
            self._lose(error)
            return None
        self._standing.drift.learn()
        self._answered = device
        self._return_idle()
        return outputs

    def _lose(self, error: EngineError) -> None:
        """Give the device up; the CPU answers what is on it."""
        for work in self._at_work:
            work.on_device = False
        # Before the device goes back, lest a canary be run on it.
        self._standing.report(Happening.FAILED, error)
        self._return_idle()

    def _return_idle(self) -> None:
        """Give the device back when no picture is on it."""
        if self._device is not None and not any(work.on_device for work in self._at_work):
            self._device = None
            self._supervisor.take_back()

    def _fits(self, pixels: Pixels) -> bool:
        return pixels.shape == self._cpu.info.input.shape[1:] and pixels.dtype == "uint8"

    def _check_required(self) -> None:
        if self._required_within_s is None:
            return
        away_s, failure = self._standing.away_s, self._standing.failure
        if failure is not None and away_s > self._required_within_s:
            raise EngineError(
                f'model.backend is "edgetpu", which is away for {away_s:.0f} s: {failure}',
                hint=failure.hint or 'set model.backend = "auto" to go on without it',
            )

    def _await_service(self) -> None:
        standing = self._standing
        standing.wait_for(
            lambda: standing.status.serves or standing.status.failures >= _TRIES_AT_START
        )
        failure = standing.failure
        if failure is not None and not standing.status.serves:
            self.close()
            raise failure
