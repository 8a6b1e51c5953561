"""The wall clock, and whether anything has set it right."""

from __future__ import annotations

import ctypes
import time

from edge_app.domain import WallClock

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 256  # struct timex is 208 bytes on 64-bit Linux; the kernel fills what it knows


def read_clock() -> WallClock:
    """Read the offset from CLOCK_MONOTONIC to UTC, and the kernel's word on synchronisation.

    A Pi without a battery-backed clock boots with a wrong time and steps it later, so the offset
    must be read again now and then.
    """
    offset_ns = time.time_ns() - time.monotonic_ns()
    return WallClock(offset_ns, _is_synced())


def _is_synced() -> bool | None:
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    # All zero: mode 0 changes nothing and needs no privilege.
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    return None if state < 0 else state != _TIME_ERROR
