"""An accelerator that may fail at any time, with a CPU engine always ready to answer for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edge_app.domain import Accelerator, Engine, EngineInfo, Event, Pixels, Tensor
from edge_app.engine.health import Happening, Limits
from edge_app.engine.standing import Standing
from edge_app.engine.supervisor import Canary, Device, Supervisor
from edge_app.errors import EngineError

_TRIES_AT_START = 2  # a first open, which uploads firmware, may fail where a second one succeeds


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

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Infer on `pixels`; see `domain.Engine.run`.

        Raises EngineError for a picture that does not fit, when the CPU engine fails, and when a
        required accelerator stays away.
        """
        fits = pixels.shape == self._cpu.info.input.shape[1:] and pixels.dtype == "uint8"
        outputs = self._try_device(pixels) if fits else None
        if outputs is None:
            self._check_required()
            outputs = self._cpu.run(pixels)
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
        self._supervisor.close()
        self._cpu.close()

    def _try_device(self, pixels: Pixels) -> list[Tensor] | None:
        """Return the device's answer, or None when the CPU must answer."""
        # A canary may be running: waiting for it is quicker than the CPU, unless the device hangs.
        device = self._supervisor.lend(self._standing.drift.patience_s)
        if device is None:
            return None
        try:
            start_ns = time.monotonic_ns()
            outputs = device.run(pixels)
            self._standing.drift.add((time.monotonic_ns() - start_ns) / 1e6)
        except EngineError as error:
            self._standing.report(Happening.FAILED, error)
            return None
        else:
            self._answered = device
            return outputs
        finally:
            self._supervisor.take_back()

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
