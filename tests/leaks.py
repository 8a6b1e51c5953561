"""What this process holds: for the tests that nothing leaks."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import NamedTuple


class Held(NamedTuple):
    """How many descriptors this process has, and how many shared memories."""

    descriptors: int
    memories: int


def held() -> Held:
    """Count, after what earlier tests left in reference cycles is gone."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return Held(len(list(Path("/proc/self/fd").iterdir())), maps.count("memfd:edge-app"))


def leaked(before: Held) -> Held:
    """Return what has come since; what others closed in the meantime is no leak."""
    now = held()
    return Held(*(max(0, count - then) for count, then in zip(now, before, strict=True)))


def rss_mb() -> float:
    """Return the memory this process occupies, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
