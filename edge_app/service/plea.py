"""Asks the privileged `edge-app-usb-reset` for help with an accelerator that stays away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

REQUEST = "usb-reset-wanted"  # in the service's runtime directory; edge-app-usb-reset.path sees it
AWAY_S = 150.0  # by then it was tried six times or more, with pauses of up to 40 s
AGAIN_S = 600.0  # longer than its longest pause, of 300 s


class Plea:
    """Watches how long the accelerator is away, and touches a file when that is too long."""

    def __init__(
        self,
        folder: Path | None,
        attached: Callable[[], bool],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder`: None when nobody would see the file. `attached`: is it there to be helped?"""
        self._folder = folder
        self._attached = attached
        self._clock_s = clock_s
        self._well_s = clock_s()  # when it last served, or was not there to be helped
        self._asked_s = -AGAIN_S

    def see(self, *, serves: bool) -> None:
        """Take note of the accelerator's state, and ask when it is time."""
        now_s = self._clock_s()
        if serves or not self._attached():
            self._well_s = now_s
        elif now_s - self._well_s >= AWAY_S and now_s - self._asked_s >= AGAIN_S:
            self._asked_s = now_s
            self.ask()

    def ask(self) -> None:
        """Ask now, if it is attached."""
        if self._folder is None or not self._attached():
            return
        try:
            (self._folder / REQUEST).touch()
        except OSError as error:
            log.warning("cannot ask for a reset of the accelerator's USB port: %s", error)
        else:
            log.warning("the accelerator is attached and stays away: asked for a reset of its port")
