"""A folder of pictures as a camera."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from edge_app.camera.folder import picture_files
from edge_app.camera.pacing import Pacer
from edge_app.camera.quiet import silence_opencv
from edge_app.domain import Frame, Pixels
from edge_app.errors import CameraEnded, CameraError, CorruptFrame
from edge_app.pictures import decode


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
        self._files: list[Path] = []
        self._left: Iterator[Path] = iter(())
        self._good_in_pass = 0
        self._seq = 0

    def __enter__(self) -> Self:
        silence_opencv()
        self._files = picture_files(self._directory, camera=self._name)
        self._left = iter(self._files)
        self._good_in_pass = self._seq = 0
        self._pacer.restart()
        return self

    def __exit__(self, *exc: object) -> None:
        self._files, self._left = [], iter(())

    def interrupt(self) -> None:
        self._pacer.interrupt()

    def read(self, timeout_s: float) -> Frame:
        """See `Camera.read`.

        A picture is decoded when it is due, not ahead: that would take the processor from whoever
        has just been given the last one. It counts as captured once it can be used.
        """
        self._pacer.wait(self._interval_ns, timeout_s)
        pixels = self._next_picture()
        frame = Frame(self._name, self._seq, time.monotonic_ns(), pixels)
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
