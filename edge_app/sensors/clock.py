"""The wall clock, and whether anything has set it right."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from edge_app.domain import WallClock

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 256  # struct timex is 208 bytes on 64-bit Linux; the kernel fills what it knows

_TIMESYNCD = Path("/run/systemd/timesync/synchronized")  # touched at each synchronisation
# As the kernel has it: not synchronised once the error may be 16 s, at 500 us more each second.
_FRESH_S = 32_000.0


def read_clock() -> WallClock:
    """Read the offset from CLOCK_MONOTONIC to UTC, and whether the clock is synchronised.

    A Pi without a battery-backed clock boots with a wrong time and steps it later, so the offset
    must be read again now and then.
    """
    offset_ns = time.time_ns() - time.monotonic_ns()
    synced = _kernel_says()
    return WallClock(offset_ns, timesyncd_says() if synced is None else synced)


def _kernel_says() -> bool | None:
    """Ask the kernel; None when it refuses, as to a service that may not touch the clock."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    # All zero: mode 0 changes nothing and needs no privilege.
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    return None if state < 0 else state != _TIME_ERROR


def timesyncd_says(marker: Path = _TIMESYNCD) -> bool | None:
    """Ask what systemd-timesyncd leaves behind; None when it does not run."""
    try:
        age_s = time.time() - marker.stat().st_mtime
    except OSError:
        return False if marker.parent.is_dir() else None
    return age_s < _FRESH_S
