"""Live cameras through OpenCV, with a stand-in for a device that gives what cannot be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_app.camera.opencv import V4l2Camera
from edge_app.domain import Pixels
from edge_app.errors import CorruptFrame

WAIT_S = 10.0


class Device:
    """Grabs well, but what it grabbed second cannot be decoded."""

    def __init__(self) -> None:
        self.grabbed = 0

    def grab(self) -> bool:
        self.grabbed += 1
        return True

    def retrieve(self) -> tuple[bool, Pixels | None]:
        bad = self.grabbed == 2
        return not bad, None if bad else np.zeros((4, 6, 3), np.uint8)

    def release(self) -> None:
        pass


class PluggedCamera(V4l2Camera):
    def _open(self) -> Any:
        return Device()


def test_a_frame_that_cannot_be_decoded_is_told_and_the_next_is_read() -> None:
    with PluggedCamera("main", Path("/dev/video0"), size_px=(6, 4), fps=0) as camera:
        assert camera.read(WAIT_S).seq == 0
        with pytest.raises(CorruptFrame, match="video0"):
            camera.read(WAIT_S)
        assert camera.read(WAIT_S).seq == 1
