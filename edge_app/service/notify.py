"""What the supervisor is told: sd_notify(3), a datagram of lines to the socket systemd names.

The protocol is documented and stable, and without it a Type=notify service is killed before it has
begun; so it is spoken here, with no library that may be missing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_PETS_PER_INTERVAL = 4  # far more of them than are needed, far fewer than there are frames


class Notifier:
    """Speaks to systemd, or to nobody. Nothing here blocks or raises. For one thread at a time."""

    def __init__(
        self,
        address: str = "",
        watchdog_s: float = 0.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`address`: a socket's path, or an abstract one with "@". `watchdog_s`: 0 for none."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._pet_every_s = watchdog_s / _PETS_PER_INTERVAL
        self._clock_s = clock_s
        self._petted_s = clock_s()
        self._ready = not address
        self._socket: socket.socket | None = None
        self._trouble = ""

    def completed(self, status: Callable[[], str]) -> None:
        """Tell of a completed step: a frame went through the engine and was judged.

        The first one makes the service ready, with the `status` of that moment.
        """
        if self._ready:
            self.progressed()
        elif self._send(f"READY=1\nSTATUS={_line(status())}\nWATCHDOG=1"):
            self._ready, self._petted_s = True, self._clock_s()

    def progressed(self) -> None:
        """Keep the watchdog away: the loop turns, and every camera is within its bound."""
        now_s = self._clock_s()
        if self._ready and self._pet_every_s and now_s - self._petted_s >= self._pet_every_s:
            self._petted_s = now_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        if self._ready:
            self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """Tell that the configuration is read again; `reloaded` must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self, text: str) -> None:
        self._send(f"READY=1\nSTATUS={_line(text)}")

    def stopping(self, why: str) -> None:
        """Tell that the end has begun; nothing is said after it."""
        self._send(f"STOPPING=1\nSTATUS={_line(why)}")
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._address = None, ""

    def _send(self, lines: str) -> bool:
        """Send without waiting; False when it was not taken. The same failure is logged once."""
        if not self._address:
            return False
        try:
            if self._socket is None:
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                self._socket = socket.socket(socket.AF_UNIX, kind)
                self._socket.connect(self._address)
            self._socket.send(lines.encode())
        except OSError as error:  # a queue that is full now (EAGAIN) as well
            self._failed(str(error))
            return False
        self._trouble = ""
        return True

    def _failed(self, reason: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        level = logging.DEBUG if reason == self._trouble else logging.WARNING
        log.log(level, "systemd cannot be told (%s): %s", self._address.lstrip("\0"), reason)
        self._trouble = reason


def from_environment(environ: Mapping[str, str] = os.environ) -> Notifier:
    """Return a notifier for what systemd has set: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID."""
    meant_for = environ.get("WATCHDOG_PID", "")
    watchdog_us = environ.get("WATCHDOG_USEC", "")
    ours = meant_for in ("", str(os.getpid())) and watchdog_us.isascii() and watchdog_us.isdigit()
    address = environ.get("NOTIFY_SOCKET", "")
    if address and not address.startswith(("/", "@")):
        log.warning("NOTIFY_SOCKET is %r; only a path or an abstract socket can be used", address)
        address = ""
    return Notifier(address, int(watchdog_us) / 1e6 if ours else 0.0)


def _line(text: str) -> str:
    return " ".join(text.split())
