"""What C++ writes to standard error, held back."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def native_stderr() -> Iterator[Callable[[], str]]:
    """Hold back what C++ writes to descriptor 2; yields a function that returns it so far.

    The runtime announces its XNNPACK delegate there and has no switch for it. What is left when
    the block ends goes to the log, so nothing is lost.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    held = os.memfd_create("stderr")
    os.dup2(held, 2)

    def said() -> str:
        text = os.pread(held, 1 << 16, 0).decode(errors="replace")
        return "\n".join(line for line in text.splitlines() if not line.startswith("INFO:"))

    try:
        yield said
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        for line in said().splitlines():
            log.debug("runtime: %s", line)
        os.close(held)
