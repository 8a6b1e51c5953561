"""Signals: asked at any time, answered as soon as there is something that can.

SIGTERM and SIGINT ask the process to end, SIGUSR1 for the flight recorder, and SIGHUP, under a
supervisor, to read the configuration again; elsewhere it means that the terminal has gone, and asks
to end.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Stop:
    """Remembers that the process was asked to end, from before the appliance is built."""

    def __init__(self) -> None:
        self._asked = ""
        self._answer: Callable[[], None] | None = None
        self._dump: Callable[[], None] | None = None
        self._reload: Callable[[], None] | None = None
        self._reload_asked = False
        self._supervised = False

    def answer_with(self, answer: Callable[[], None]) -> None:
        """Call `answer` when asked, at once if that has happened. It must be safe in a handler."""
        self._answer = answer
        if self._asked:
            answer()

    def dump_with(self, dump: Callable[[], None]) -> None:
        """Call `dump` at SIGUSR1 from now on. It must be safe in a handler."""
        self._dump = dump

    def reload_with(self, reload: Callable[[], None]) -> None:
        """Call `reload` at a supervisor's SIGHUP, at once if one has come; safe in a handler."""
        self._reload = reload
        if self._reload_asked:
            reload()

    @contextmanager
    def on_signals(self, *, supervised: bool = False) -> Iterator[None]:
        """Listen while the block runs; the handlers found are put back."""
        self._supervised = supervised
        numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
        if supervised or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks
            numbers |= {signal.SIGHUP}
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._asked:
                log.info("stopped by %s", self._asked)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # No logging here: the signal may have come in the middle of it.
        if number == signal.SIGUSR1:
            if self._dump is not None:
                self._dump()
            return
        if number == signal.SIGHUP and self._supervised:
            self._reload_asked = True
            if self._reload is not None:
                self._reload()
            return
        self._asked = signal.Signals(number).name
        if self._answer is not None:
            self._answer()
