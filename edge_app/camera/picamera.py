"""The Raspberry Pi camera through picamera2, which only this module imports.

The ISP scales for free, so the one (main) stream is asked for no larger than the model needs.
picamera2 names formats by the letters of DRM fourccs, which read backwards: "BGR888" lies in memory
as R, G, B. The camera may grant another size, format or stride than asked: what was granted counts.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_app.domain import Frame, Pixels
from edge_app.errors import CameraEnded, CameraError, CameraStalled

FORMATS = ("BGR888", "RGB888", "XBGR8888", "XRGB8888", "YUV420")
OLDEST_NS = 10_000_000_000  # a capture time longer ago is no capture time
_ALIGN_PX = 2
_NEARLY_ALL = 0.95  # of the view: a mode that skips pixels leaves out a few at the edges


class PiCamera:
    """Camera number `index` of this Raspberry Pi."""

    def __init__(
        self,
        name: str,
        index: int,
        *,
        size_px: tuple[int, int],
        fps: float,
        cover_px: tuple[int, int],
    ) -> None:
        self._name = name
        self._index = index
        self._size_px = size_px
        self._stream_px = covering_size(size_px, cover_px)
        self._fps = fps
        self._device: Any = None
        self._stream: Mapping[str, Any] = {}
        self._stalled = False
        self._interrupted = False
        self._seq = 0

    def __enter__(self) -> Self:
        picamera2 = _import_picamera2(self._name)
        found = picamera2.global_camera_info()
        if self._index >= len(found):
            names = ", ".join(f"{i}: {info.get('Model', '?')}" for i, info in enumerate(found))
            raise CameraError(
                f"camera {self._name}: no camera {self._index}; found: {names or 'none'}",
                hint="check the ribbon cable; rpicam-hello --list-cameras shows what is there",
            )
        self._stalled = self._interrupted = False
        self._seq = 0
        try:
            self._device = picamera2(self._index)
            self._start(self._device)
        except RuntimeError as error:
            self.__exit__()
            raise CameraError(
                f"camera {self._name}: picamera:{self._index} cannot be started: {error}",
                hint="another program may be using it; rpicam-hello tells more",
            ) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        device, self._device = self._device, None
        if device is None:
            return
        if self._stalled:  # stop() and close() would wait, perhaps for ever, for the lost camera
            atexit.unregister(device.close)
            return
        device.close()

    def interrupt(self) -> None:
        self._interrupted = True  # seen when the frame that is under way has come

    def read(self, timeout_s: float) -> Frame:
        """See `Camera.read`. After CameraStalled the camera is not to be used in this process."""
        if self._interrupted or self._device is None:
            raise CameraEnded(f"camera {self._name}: closed")
        try:
            request = self._device.capture_request(wait=timeout_s)
        except TimeoutError:
            self._stalled = True
            raise CameraStalled(
                f"camera {self._name}: no frame for {timeout_s:.1f} s from picamera:{self._index}",
                hint="check the ribbon cable; a restart of the process frees the camera",
            ) from None
        try:
            captured_ns = self._captured_ns(request.get_metadata())
            data = request.make_buffer("main")  # the one copy out of the DMA buffer
        finally:
            request.release()
        stream = self._stream
        pixels = unpack(data, stream["format"], stream["size"], stream["stride"])
        frame = Frame(self._name, self._seq, captured_ns, pixels)
        self._seq += 1
        return frame

    def _start(self, device: Any) -> None:
        device.configure(
            device.create_video_configuration(
                main={"format": "BGR888", "size": self._stream_px},
                raw=None,
                sensor=full_view_mode(device.sensor_modes, self._stream_px),
                buffer_count=4,
            )
        )
        self._stream = device.camera_configuration()["main"]
        if self._stream["format"] not in FORMATS:
            raise CameraError(
                f"camera {self._name}: picamera:{self._index} gives {self._stream['format']}; "
                f"allowed: {', '.join(FORMATS)}",
                hint="a USB camera is better used as v4l2:/dev/videoN",
            )
        controls = frame_duration(self._fps, device.camera_controls)
        if controls:
            device.set_controls(controls)
        device.start()

    def _captured_ns(self, metadata: Mapping[str, Any]) -> int:
        now_ns = time.monotonic_ns()
        offset_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now_ns
        return capture_time_ns(metadata.get("SensorTimestamp"), now_ns, offset_ns)


def full_view_mode(
    modes: Sequence[Mapping[str, Any]], cover_px: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    """Return the setting for the sensor's smallest mode that shows all it sees and covers.

    picamera2 itself takes the mode nearest in size, and the small ones of many sensors show only
    the middle. `crop_limits` is x, y, width, height on the sensor; {} when no mode tells them.
    """
    views = [(mode["crop_limits"], mode["size"]) for mode in modes if "crop_limits" in mode]
    widest = max((crop[2] * crop[3] for crop, _ in views), default=0)
    whole = [size for crop, size in views if crop[2] * crop[3] >= _NEARLY_ALL * widest]
    covering = [size for size in whole if size[0] >= cover_px[0] and size[1] >= cover_px[1]]
    if not whole:
        return {}
    if not covering:
        return {"output_size": max(whole)}
    return {"output_size": min(covering)}


def covering_size(size_px: tuple[int, int], cover_px: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest even size with the aspect of `size_px` that covers `cover_px`.

    Never larger than `size_px`: the ISP only scales down.
    """
    width, height = size_px
    scale = min(1.0, max(cover_px[0] / width, cover_px[1] / height))
    even_width = min(_round_up(width * scale), width - width % _ALIGN_PX)
    even_height = min(_round_up(height * scale), height - height % _ALIGN_PX)
    return even_width, even_height


def _round_up(length_px: float) -> int:
    return _ALIGN_PX * int(np.ceil(round(length_px, 6) / _ALIGN_PX))


def frame_duration(
    fps: float, controls: Mapping[str, tuple[Any, Any, Any]]
) -> dict[str, tuple[int, int]]:
    """Return the control for `fps` (0: the fastest) within the camera's limits; {} if it has none.

    `controls`: name to (minimum, maximum, default), durations in microseconds.
    """
    if "FrameDurationLimits" not in controls:
        return {}
    shortest, longest, _ = (_first(limit) for limit in controls["FrameDurationLimits"])
    wanted = shortest if fps == 0 else round(1e6 / fps)
    duration = max(shortest, min(wanted, longest) if longest else wanted)
    return {"FrameDurationLimits": (duration, duration)}


def _first(limit: Any) -> int:
    return int(limit[0] if isinstance(limit, list | tuple) else limit or 0)


def capture_time_ns(sensor_ns: int | None, now_ns: int, boot_offset_ns: int) -> int:
    """Return when the sensor took the frame, on CLOCK_MONOTONIC.

    libcamera documents SensorTimestamp as CLOCK_BOOTTIME; some of its pipelines pass on the
    kernel's CLOCK_MONOTONIC. The two differ (by `boot_offset_ns`) only after a suspend; then the
    reading that lies in the past, and less far, is right. A camera that tells no time, or nonsense,
    took the frame now.
    """
    if not sensor_ns:
        return now_ns
    readings = (sensor_ns - boot_offset_ns, sensor_ns)
    return max((t for t in readings if now_ns - OLDEST_NS <= t <= now_ns), default=now_ns)


def unpack(
    data: NDArray[np.uint8], pixel_format: str, size_px: tuple[int, int], stride_bytes: int
) -> Pixels:
    """Turn a raw buffer into H x W x 3 RGB. Rows are `stride_bytes` apart, which may be padding.

    YUV420: the Y plane, then U and V at half the stride, limited range, BT.601 (what the ISP gives
    below 1280 x 720). Raises CameraError when the buffer is too short for what was granted.
    """
    width, height = size_px
    rows = height * 3 // 2 if pixel_format == "YUV420" else height
    if len(data) < rows * stride_bytes:
        raise CameraError(
            f"a {pixel_format} frame of {width}x{height} has {len(data)} bytes, "
            f"not the {rows * stride_bytes} of its stride"
        )
    lines = data[: rows * stride_bytes].reshape(rows, stride_bytes)
    if pixel_format == "YUV420":
        # OpenCV wants the planes without padding between them; crop after, where it is simple.
        rgb = cv2.cvtColor(np.ascontiguousarray(lines), cv2.COLOR_YUV2RGB_I420)[:, :width]
    else:
        depth = 4 if pixel_format.startswith("X") else 3
        pixels = lines[:, : width * depth].reshape(height, width, depth)[:, :, :3]
        rgb = pixels if pixel_format in ("BGR888", "XBGR8888") else pixels[:, :, ::-1]
    return np.ascontiguousarray(rgb, np.uint8)


def _import_picamera2(camera: str) -> Any:
    try:
        from picamera2 import Picamera2
    except (ImportError, ValueError) as error:  # ValueError: built against another numpy
        raise CameraError(
            f"camera {camera}: picamera2 cannot be used: {error}",
            hint="sudo apt install python3-picamera2, and make the virtual environment with "
            "--system-site-packages, numpy below 2 on Raspberry Pi OS 12",
        ) from error
    return Picamera2
