"""A folder of pictures as a camera."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from edge_app.camera.pacing import Pacer
from edge_app.camera.quiet import silence_opencv
from edge_app.domain import Frame, Pixels
from edge_app.errors import CameraEnded, CameraError, CorruptFrame

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class ImagesCamera:
    """Every picture of a directory in the order of file names, `fps` a second (0: unpaced)."""

    def __init__(
        self, name: str, directory: Path, *, fps: float, loop: bool, cover_px: tuple[int, int]
    ) -> None:
        self._name = name
        self._directory = directory
        self._interval_ns = int(1e9 / fps) if fps > 0 else 0
        self._loop = loop
        self._cover_px = cover_px
        self._pacer = Pacer()
        self._pending: Pixels | None = None
        self._files: list[Path] = []
        self._left: Iterator[Path] = iter(())
        self._good_in_pass = 0
        self._seq = 0

    def __enter__(self) -> Self:
        silence_opencv()
        self._files = picture_files(self._directory, camera=self._name)
        self._left = iter(self._files)
        self._pending = None
        self._good_in_pass = self._seq = 0
        self._pacer.restart()
        return self

    def __exit__(self, *exc: object) -> None:
        self._files, self._left, self._pending = [], iter(()), None

    def interrupt(self) -> None:
        self._pacer.interrupt()

    def read(self, timeout_s: float) -> Frame:
        """See `Camera.read`. Decoding happens before the wait, so pacing is not late by it."""
        if self._pending is None:
            self._pending = self._next_picture()
        captured_ns = self._pacer.wait(self._interval_ns, timeout_s)
        frame = Frame(self._name, self._seq, captured_ns, self._pending)
        self._pending = None
        self._seq += 1
        return frame

    def _next_picture(self) -> Pixels:
        path = next(self._left, None)
        if path is None:
            path = self._next_pass()
        try:
            pixels = decode(path.read_bytes(), self._cover_px)
        except OSError as error:
            raise CorruptFrame(f"{path} cannot be read: {error.strerror}") from None
        if pixels is None:
            raise CorruptFrame(f"{path} is damaged, or no picture")
        self._good_in_pass += 1
        return pixels

    def _next_pass(self) -> Path:
        if self._files and not self._good_in_pass:  # or a looping camera would spin for ever
            raise CameraError(
                f"camera {self._name}: none of the {len(self._files)} pictures in "
                f"{self._directory} can be decoded",
                hint="open one of them in a viewer; replace what is damaged",
            )
        if not self._files or not self._loop:
            raise CameraEnded(f"camera {self._name}: no further picture in {self._directory}")
        self._good_in_pass = 0
        self._left = iter(self._files)
        return next(self._left)


def picture_files(directory: Path, *, camera: str) -> list[Path]:
    """List a directory's pictures by name; CameraError when there is none."""
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise CameraError(
            f"camera {camera}: {directory} cannot be listed: {error.strerror}",
            hint="images: takes a directory that this user may read",
        ) from None
    if not names:
        raise CameraError(
            f"camera {camera}: {directory} holds no picture",
            hint=f"put files there that end in {', '.join(SUFFIXES)}",
        )
    return names


def decode(data: bytes, cover_px: tuple[int, int]) -> Pixels | None:
    """Decode a picture file to H x W x 3 RGB, upright (EXIF); None when damaged or no picture.

    A JPEG is decoded at 1/2, 1/4 or 1/8 when that still covers `cover_px` (width, height): the
    decoder then computes smaller blocks, which a 12-megapixel photo pays for with a fifth of the
    time (measured on x86-64: 52 ms down to 10 ms).
    """
    divisor = 1
    if data.startswith(b"\xff\xd8"):
        size_px, scan_at = jpeg_header(data)
        if size_px is None or data.find(_JPEG_END, scan_at) < 0:
            return None  # cut short: the decoder would make up the missing part in grey
        divisor = reduction(size_px, cover_px)
    elif data.startswith(_PNG) and _PNG_END not in data:
        return None  # libpng would write to stderr about it
    elif data.startswith(b"BM") and len(data) < int.from_bytes(data[2:6], "little"):
        return None  # OpenCV 4 would fill up the rest
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[divisor])
    except cv2.error:
        return None
    if bgr is None:  # type: ignore[redundant-expr,unused-ignore]
        return None
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def reduction(size_px: tuple[int, int], cover_px: tuple[int, int]) -> int:
    """Return the largest of 1, 2, 4, 8 by which a picture can shrink and still cover `cover_px`.

    Either way round, since EXIF may turn the picture by a right angle afterwards.
    """
    for divisor in (8, 4, 2):
        if -(-min(size_px) // divisor) >= max(cover_px):
            return divisor
    return 1


def jpeg_header(data: bytes) -> tuple[tuple[int, int] | None, int]:
    """Find width and height in pixels, and where the first scan starts (ITU-T T.81, annex B)."""
    size_px = None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:  # start of scan
            return size_px, at + 2 + length
        is_frame_header = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame_header and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size_px = (width, height)
        at += 2 + length
    return None, len(data)
