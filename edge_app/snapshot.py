"""A frame as a picture for people: what it shows written into it, as a JPEG of bounded size."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

from edge_app.domain import Pixels

MAX_BYTES = 256_000
_LONGEST_PX = 1280
_QUALITIES = (85, 70, 50, 30)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE_SHARE = 0.05  # of the picture's height


def snapshot(
    pixels: Pixels, lines: Sequence[str], max_bytes: int = MAX_BYTES
) -> tuple[bytes, tuple[int, int]]:
    """Return a JPEG of at most `max_bytes` with `lines` along its lower edge, and its size in px.

    Quality is given up first, then size.
    """
    longest_px = _LONGEST_PX
    while True:
        picture = _captioned(_shrunk(pixels, longest_px), lines)
        for quality in _QUALITIES:
            _, jpeg = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))
            if len(jpeg) <= max_bytes or longest_px <= 16:
                return jpeg.tobytes(), (picture.shape[1], picture.shape[0])
        longest_px //= 2


def _shrunk(pixels: Pixels, longest_px: int) -> np.ndarray:
    """Return a BGR copy whose longer side is at most `longest_px`."""
    height, width = pixels.shape[:2]
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    scale = longest_px / max(height, width)
    if scale >= 1:
        return bgr
    size_px = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(bgr, size_px, interpolation=cv2.INTER_AREA)


def _captioned(bgr: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Darken a strip along the lower edge and write `lines` on it, as large as fits."""
    height, width = bgr.shape[:2]
    line_px = max(12, round(height * _LINE_SHARE))
    strip_px = min(height, round(line_px * (1.5 * len(lines) + 0.3)))
    bgr[height - strip_px :] //= 3
    bottom_px = height - strip_px
    for line in lines:
        bottom_px += round(1.5 * line_px)
        text = _plain(line)
        (text_px, tall_px), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
        scale = min(line_px / max(tall_px, 1), 0.96 * width / max(text_px, 1))
        thickness = 2 if scale > 0.9 else 1
        at = (round(0.02 * width), bottom_px - round(0.25 * line_px))
        cv2.putText(bgr, text, at, _FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return bgr


def _plain(text: str) -> str:
    """Return what OpenCV's fonts can write: ASCII, accents left out."""
    bare = unicodedata.normalize("NFKD", text)
    letters = (char for char in bare if not unicodedata.combining(char))
    return "".join(char if " " <= char <= "~" else "?" for char in letters)
