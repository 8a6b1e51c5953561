"""Who has the device: the frames, or the thread that looks after it, which goes first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Custody:
    """Like a lock for two parties, of which one (`alone`) is let in next when it waits.

    With a plain lock, frames that follow one another closely would keep canaries out for good.
    """

    def __init__(self) -> None:
        self._freed = threading.Condition()
        self._taken = False
        self._wanted = False

    @property
    def wanted(self) -> bool:
        """Whether somebody waits in `alone`: give back soon."""
        return self._wanted

    def borrow(self, patience_s: float) -> bool:
        """Take it for frames; False when it was not to be had within `patience_s`."""
        with self._freed:
            if not self._freed.wait_for(lambda: not (self._taken or self._wanted), patience_s):
                return False
            self._taken = True
            return True

    def give_back(self) -> None:
        """End a `borrow`."""
        with self._freed:
            self._taken = False
            self._freed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep frames away; waits for those that are there. For one thread only."""
        with self._freed:
            self._wanted = True
            self._freed.wait_for(lambda: not self._taken)
            self._taken, self._wanted = True, False
        try:
            yield
        finally:
            self.give_back()
