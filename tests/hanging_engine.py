"""Runs `edge-app` with a processor that stops answering, as a driver's deadlock would have it.

Usage: python -m tests.hanging_engine FILE ARGUMENTS...; inference hangs once FILE is there,
and FILE.hangs then is, too.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from edge_app.cli import main
from edge_app.domain import Pixels, Tensor
from edge_app.engine.litert import LiteRtEngine

answer = LiteRtEngine.run


def run(self: LiteRtEngine, pixels: Pixels) -> list[Tensor]:
    """Answer, or never."""
    flag = Path(sys.argv[1])
    if flag.exists():
        flag.with_suffix(".hangs").touch()
        threading.Event().wait()
    return answer(self, pixels)


if __name__ == "__main__":
    LiteRtEngine.run = run  # type: ignore[method-assign]  # that is what this is for
    sys.exit(main(sys.argv[2:]))
