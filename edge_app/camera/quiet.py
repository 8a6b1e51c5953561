"""The logs of OpenCV and FFmpeg, off: what fails is told by our errors, and without passwords."""

from __future__ import annotations

import os

import cv2


def silence_opencv() -> None:
    """Set the process-wide log levels, before FFmpeg is first used; what the user set stays."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:  # OpenCV 5
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
