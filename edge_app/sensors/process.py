"""What this process takes, from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

from edge_app.stats import ProcessUse

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessMeter:
    """Memory now, and processor time since the last reading."""

    def __init__(self, proc_root: Path = Path("/proc")) -> None:
        self._statm = proc_root / "self" / "statm"
        self._wall_s = time.monotonic()
        self._cpu_s = time.process_time()

    def read(self) -> ProcessUse:
        """Return resident memory (1 MB = 10^6 bytes) and percent of one core since last asked."""
        wall_s, cpu_s = time.monotonic(), time.process_time()
        elapsed_s = wall_s - self._wall_s
        percent = round(100 * (cpu_s - self._cpu_s) / elapsed_s, 1) if elapsed_s > 0 else None
        self._wall_s, self._cpu_s = wall_s, cpu_s
        try:
            pages = int(self._statm.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return ProcessUse(None, percent)
        return ProcessUse(round(pages * _PAGE_BYTES / 1e6, 1), percent)
