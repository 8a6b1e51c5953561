"""OpenCV's own log, off: what fails is told by our errors, once, and without file contents."""

from __future__ import annotations

import cv2


def silence_opencv() -> None:
    """Set the process-wide log level of OpenCV (its place moved in version 5)."""
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
