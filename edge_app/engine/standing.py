"""How an accelerator stands, and what is told about it; shared by all threads that use it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from edge_app.domain import Event
from edge_app.engine.child import ChildFailed
from edge_app.engine.health import Happening, Limits, Status, step
from edge_app.engine.pace import Drift
from edge_app.errors import EngineError
from edge_app.stats import Accelerator

log = logging.getLogger(__name__)

Details = dict[str, str | int | float | None]

_MAX_EVENTS = 100


class Standing:
    """The status that `health.step` leads to, what it was caused by, and the events of it.

    Any thread may report what happened, and wait for what others reported.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.drift = Drift(limits)
        self.status = Status()
        self.failure: EngineError | None = None  # why it does not serve
        self._changed = threading.Condition()
        self._lost_s = time.monotonic()
        self._fallbacks = 0
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)

    @property
    def away_s(self) -> float:
        """How long it has not served."""
        with self._changed:
            return 0.0 if self.status.serves else time.monotonic() - self._lost_s

    def report(
        self, happening: Happening, error: EngineError | None = None, backend: str = ""
    ) -> None:
        """Take the step that `happening` asks for, and say what changed.

        `error` comes with a failure, `backend` with what may promote.
        """
        with self._changed:
            before, now_s = self.status, time.monotonic()
            chance = random.random()  # noqa: S311  # jitter
            self.status = after = step(self.limits, before, happening, now_s, chance)
            if after.state is before.state:
                return
            if error is not None:
                self._say_failed(before, error, after.until_s - now_s)
            elif after.serves and not before.serves:
                self._say_promoted(after, backend)
            elif happening is Happening.REOPEN and before.serves:
                self._lost_s = now_s
                self._say("reopening", "the CPU answers while the accelerator is opened anew", {})
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], object], timeout_s: float | None = None) -> None:
        """Wait until `condition`, which must come true by a report or before a `wake`."""
        with self._changed:
            self._changed.wait_for(condition, timeout_s)

    def wake(self) -> None:
        """Have all who wait look at their conditions again."""
        with self._changed:
            self._changed.notify_all()

    def events(self) -> list[Event]:
        """Take what happened since the last call."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def accelerator(self) -> Accelerator:
        """Say how the accelerator fares."""
        with self._changed:
            status, failure = self.status, self.failure
            return Accelerator(
                fallbacks=self._fallbacks,
                promotions=status.promotions,
                state=status.state.value,
                canaries=status.canaries,
                baseline_p95_ms=_rounded(self.drift.baseline_p95_ms),
                p95_ms=_rounded(self.drift.pace.p95_ms),
                cause=None if status.serves or failure is None else str(failure),
            )

    def say_if_slow(self) -> None:
        """Tell, once, of a device that has become slow."""
        if not self.drift.newly_slow():
            return
        baseline_ms, p95_ms = self.drift.baseline_p95_ms, self.drift.pace.p95_ms
        message = f"the accelerator has become slow: p95 {p95_ms:.1f} ms, was {baseline_ms:.1f} ms"
        details: Details = {"baseline_p95_ms": _rounded(baseline_ms), "p95_ms": _rounded(p95_ms)}
        event = Event("accelerator_slow", message, details)
        log.warning("%s", message, extra=event.fields())
        self._events.append(event)

    def _say_failed(self, before: Status, error: EngineError, pause_s: float) -> None:
        # Without the traceback, which would keep the picture and the dead child in memory.
        last, self.failure = self.failure, error.with_traceback(None)
        if before.serves or last is None:
            kind = "fallback"
            self._fallbacks += 1
            self._lost_s = time.monotonic() if before.serves else self._lost_s
        elif str(last) != str(error):
            kind = "probe_failed"
        else:  # the same as last time: said once
            log.debug("accelerator: %s; next try in %.1f s", str(error), pause_s)
            return
        details: Details = {
            "backend": "cpu",
            "cause": str(error),
            "hint": error.hint,
            "said": error.said if isinstance(error, ChildFailed) else "",
            "retry_s": round(pause_s, 1),
        }
        event = Event(kind, f"the CPU answers: {error}", details)
        text = "accelerator: %s; the CPU answers; next try in %.1f s"
        log.warning(text, str(error), pause_s, extra=event.fields())
        self._events.append(event)

    def _say_promoted(self, after: Status, backend: str) -> None:
        self.failure = None
        self._say(
            "promoted",
            f"the accelerator serves after {self.limits.canaries} clean canaries",
            {
                "backend": backend,
                "away_s": round(time.monotonic() - self._lost_s, 1),
                "promotions": after.promotions,
            },
        )

    def _say(self, kind: str, message: str, details: Details) -> None:
        event = Event(kind, message, details)
        log.info("accelerator: %s", message, extra=event.fields())
        self._events.append(event)


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, 2)
