"""Runs `edge-app` with a processor that stops answering, as a driver's deadlock would have it.

Usage: python -m tests.hanging_engine FILE ARGUMENTS...; inference hangs once FILE is there.
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
    if Path(sys.argv[1]).exists():
        threading.Event().wait()
    return answer(self, pixels)


if __name__ == "__main__":
    LiteRtEngine.run = run  # type: ignore[method-assign]  # that is what this is for
    sys.exit(main(sys.argv[2:]))
