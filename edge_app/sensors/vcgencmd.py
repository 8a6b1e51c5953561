"""Questions to a Raspberry Pi's firmware, through its `vcgencmd`."""

from __future__ import annotations

import logging
import subprocess
import time

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0  # it answers within milliseconds
RETRY_S = 30.0  # a machine that is no Pi need not be asked every second


class Vcgencmd:
    """One question. After a failure it is asked again only when `retry_s` are over.

    `command`: a program on PATH, or a path.
    """

    def __init__(self, question: str, command: str = "vcgencmd", retry_s: float = RETRY_S) -> None:
        self._argv = (command, question)
        self._retry_s = retry_s
        self._not_before_s = 0.0
        self._told = False

    def ask(self) -> str | None:
        """Return the answer within TIMEOUT_S; None when there is none."""
        if time.monotonic() < self._not_before_s:
            return None
        try:
            answer = subprocess.run(
                self._argv,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
            ).stdout.decode("ascii")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # No Pi, or a system that leaves it out: nothing to complain of. A folder on PATH that
            # this user may not search hides only that it is missing.
            self._wait()
            return None
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
            self._wait()
            self._tell(error)
            return None
        if answer.startswith("error="):  # firmware that does not know the question
            self._wait()
            return None
        self._told = False
        return answer

    def _wait(self) -> None:
        self._not_before_s = time.monotonic() + self._retry_s

    def _tell(self, error: Exception) -> None:
        if not self._told:
            log.warning(
                "%s: %s; asked again every %g s", " ".join(self._argv), error, self._retry_s
            )
        self._told = True
