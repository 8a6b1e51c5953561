"""Cameras through OpenCV's capture side: V4L2 devices, RTSP streams, video files."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from edge_app.camera.pacing import Pacer, RateLimit
from edge_app.camera.quiet import silence_opencv
from edge_app.camera.sources import redacted
from edge_app.domain import Frame, Pixels
from edge_app.errors import CameraEnded, CameraError, CameraStalled, CorruptFrame
from edge_app.files import is_file

RTSP_TIMEOUT_S = 5.0  # to open
# Nothing interrupts a read, and FFmpeg's RTSP never recovers from one that timed out: so this is
# the bound of a stall, and shorter than the mailboxes wait for a capture thread to end.
RTSP_READ_TIMEOUT_S = 3.0


class _LiveCamera:
    """What V4L2 and RTSP share: frames come when they come."""

    def __init__(self, name: str, source: str, fps: float) -> None:
        self._name = name
        self._source = source  # as it may be shown
        self._limit = RateLimit(fps)
        self._interrupted = threading.Event()
        self._capture: cv2.VideoCapture | None = None
        self._seq = 0

    def _open(self) -> cv2.VideoCapture:
        raise NotImplementedError

    def __enter__(self) -> Self:
        silence_opencv()
        self._interrupted.clear()
        self._seq = 0
        self._capture = self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def interrupt(self) -> None:
        self._interrupted.set()

    def read(self, timeout_s: float) -> Frame:
        """See `Camera.read`; `captured_ns` is the arrival. OpenCV may time out sooner."""
        started_ns = time.monotonic_ns()
        while True:
            if self._interrupted.is_set() or self._capture is None:
                raise CameraEnded(f"camera {self._name}: closed")
            if not self._capture.grab():
                raise self._lost(time.monotonic_ns() - started_ns, timeout_s)
            captured_ns = time.monotonic_ns()
            if self._limit.admits(captured_ns):
                break
            if captured_ns - started_ns > timeout_s * 1e9:
                raise self._lost(captured_ns - started_ns, timeout_s)
        ok, bgr = self._capture.retrieve()
        if not ok:
            raise CorruptFrame(f"a frame from {self._source} cannot be decoded")
        frame = Frame(self._name, self._seq, captured_ns, _rgb(bgr))
        self._seq += 1
        return frame

    def _lost(self, waited_ns: int, timeout_s: float) -> CameraError:
        waited_s = waited_ns / 1e9
        hint = "check that the camera has power and is connected; restarting usually helps"
        if waited_s > 0.9 * min(timeout_s, RTSP_TIMEOUT_S):
            text = f"camera {self._name}: no frame for {waited_s:.1f} s from {self._source}"
            return CameraStalled(text, hint=hint)
        return CameraError(f"camera {self._name}: {self._source} gives no more frames", hint=hint)


class V4l2Camera(_LiveCamera):
    """A Video4Linux device such as a USB camera."""

    def __init__(self, name: str, device: Path, *, size_px: tuple[int, int], fps: float) -> None:
        super().__init__(name, f"v4l2:{device}", fps)
        self._device = device
        self._size_px = size_px
        self._fps = fps

    def _open(self) -> cv2.VideoCapture:
        self._check_device()
        capture = cv2.VideoCapture(str(self._device), cv2.CAP_V4L2)
        if not capture.isOpened():
            raise CameraError(
                f"camera {self._name}: {self._device} gives no pictures",
                hint="v4l2-ctl --list-devices shows which do; another program may be using it",
            )
        # Wishes: the driver takes the nearest it has.
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size_px[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size_px[1])
        if self._fps > 0:
            capture.set(cv2.CAP_PROP_FPS, self._fps)
        return capture

    def _check_device(self) -> None:
        try:
            mode = self._device.stat().st_mode
        except OSError as error:
            present = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
            raise CameraError(
                f"camera {self._name}: {self._device}: {error.strerror}; "
                f"found: {present or 'none'}",
                hint="is it plugged in? v4l2-ctl --list-devices shows what is there",
            ) from None
        if not stat.S_ISCHR(mode):
            raise CameraError(
                f"camera {self._name}: {self._device} is no device", hint="write v4l2:/dev/video0"
            )
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise CameraError(
                f"camera {self._name}: {self._device} may not be used by this user",
                hint="add the user to the group video: sudo usermod -aG video $USER",
            )


class RtspCamera(_LiveCamera):
    """A network camera, over TCP. Every wait is bounded; the address is never shown in full."""

    def __init__(
        self, name: str, url: str, *, fps: float, timeout_s: float = RTSP_TIMEOUT_S
    ) -> None:
        super().__init__(name, redacted(url), fps)
        self._url = url
        self._timeout_s = timeout_s
        self._read_timeout_s = min(timeout_s, RTSP_READ_TIMEOUT_S)

    def _open(self) -> cv2.VideoCapture:
        # The only way to tell OpenCV's FFmpeg. Over UDP, losses would show as grey smears.
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
        timeout_ms = int(self._timeout_s * 1000)
        started_ns = time.monotonic_ns()
        capture = cv2.VideoCapture(
            self._url,
            cv2.CAP_FFMPEG,
            [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                timeout_ms,
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                int(self._read_timeout_s * 1000),
            ],
        )
        if capture.isOpened():
            return capture
        waited_s = (time.monotonic_ns() - started_ns) / 1e9
        if waited_s > 0.9 * self._timeout_s:
            raise CameraStalled(
                f"camera {self._name}: {self._source} did not answer in {self._timeout_s:.0f} s",
                hint="check the address, and that the camera is switched on and reachable",
            )
        raise CameraError(
            f"camera {self._name}: {self._source} refused, or serves no video there",
            hint="check host, port, path, user name and password; try the address in VLC",
        )

    def _lost(self, waited_ns: int, timeout_s: float) -> CameraError:
        return super()._lost(waited_ns, min(timeout_s, self._read_timeout_s))


class ClipCamera:
    """A video file, every frame in order.

    Paced by the file's own timestamps, and no faster than `fps`; `fps` 0: as fast as it decodes.
    A file that is cut short ends where it is cut.
    """

    def __init__(self, name: str, clip: Path, *, fps: float, loop: bool) -> None:
        self._name = name
        self._clip = clip
        self._fps = fps
        self._loop = loop
        self._pacer = Pacer()
        self._capture: cv2.VideoCapture | None = None
        self._pending: tuple[Pixels, int] | None = None
        self._clip_ms = 0.0
        self._seq = 0

    def __enter__(self) -> Self:
        silence_opencv()
        self._pacer.restart()
        self._pending = None
        self._seq = 0
        self._rewind()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._capture is not None:
            self._capture.release()
        self._capture = self._pending = None

    def interrupt(self) -> None:
        self._pacer.interrupt()

    def read(self, timeout_s: float) -> Frame:
        """See `Camera.read`."""
        if self._pending is None:
            self._pending = self._next_picture()
        pixels, interval_ns = self._pending
        captured_ns = self._pacer.wait(interval_ns, timeout_s)
        frame = Frame(self._name, self._seq, captured_ns, pixels)
        self._pending = None
        self._seq += 1
        return frame

    def _next_picture(self) -> tuple[Pixels, int]:
        """Decode the next frame; also return how long after the one before it is due."""
        if self._capture is None:
            raise CameraEnded(f"camera {self._name}: closed")
        ok, bgr = self._capture.read()
        if not ok:
            if not self._loop:
                raise CameraEnded(f"camera {self._name}: end of {self._clip}")
            self._rewind()
            ok, bgr = self._capture.read()
            if not ok:
                raise self._unreadable()
        return _rgb(bgr), self._interval_ns(self._capture)

    def _interval_ns(self, capture: cv2.VideoCapture) -> int:
        if self._fps == 0:
            return 0
        before_ms, self._clip_ms = self._clip_ms, capture.get(cv2.CAP_PROP_POS_MSEC)
        interval_ms = self._clip_ms - before_ms
        if interval_ms <= 0:  # the first frame after a rewind, or a file without timestamps
            interval_ms = 1000 / (capture.get(cv2.CAP_PROP_FPS) or self._fps)
        return int(max(interval_ms * 1e6, 1e9 / self._fps))

    def _rewind(self) -> None:
        """Open the file from its start (not every container can seek). Checks the first frame."""
        if self._capture is not None:
            self._capture.release()
        if not is_file(self._clip):
            raise CameraError(
                f"camera {self._name}: there is no file {self._clip}",
                hint="file: takes the path of a video file, such as file:/srv/clip.mp4",
            )
        # An absolute path, or FFmpeg would take what comes before a colon for a protocol.
        path = str(self._clip.resolve())
        self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        self._clip_ms = 0.0
        if not self._capture.isOpened():
            raise self._unreadable()

    def _unreadable(self) -> CameraError:
        return CameraError(
            f"camera {self._name}: {self._clip} is no video that can be decoded",
            hint="ffprobe says what it is; an MP4 with H.264 or MJPEG works",
        )


def _rgb(bgr: cv2.typing.MatLike) -> Pixels:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
