"""A thread for what takes too long for the loop: pictures to encode, a model to look over."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

_WAITING_LIMIT = 4
_JOIN_S = 1.0  # SIGTERM leaves little time, and nothing is lost with an errand


class Errands:
    """Does one after the other, from `with` to its end.

    `stopping` is set at the end: an errand that takes long should look at it.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING_LIMIT + 1)
        self._thread = threading.Thread(target=self._run, name="errands", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._waiting.put(None)  # there is a place for it
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("an errand is still under way after %g s; left behind", _JOIN_S)

    def add(self, errand: Callable[[], None]) -> bool:
        """Take it on; False when too many wait already. From one thread."""
        if self._waiting.qsize() >= _WAITING_LIMIT:
            return False
        self._waiting.put(errand)
        return True

    def _run(self) -> None:
        while (errand := self._waiting.get()) is not None and not self.stopping.is_set():
            try:
                errand()
            except Exception:  # the thread's outermost frame: a bug must not end all that follow
                log.exception("an errand failed")
