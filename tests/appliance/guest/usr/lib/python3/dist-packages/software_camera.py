"""Lets picamera2 drive libcamera's `virtual` pipeline, a camera made of software.

Imported by the guest's picamera2 as its last act. picamera2 expects a Raspberry Pi's camera, and
libcamera 0.4's virtual one differs from it in five ways, each made good here:

- it has no raw stream to tell the sensor's modes from;
- it wants one plane of a buffer for each of NV12's two, and aborts the process over a single one;
- it leaves the status of a frame uninitialised, and picamera2 drops frames that did not succeed;
- it has no clock: a request is answered as soon as it is queued. Here it has one, which can be as
  slow as a Raspberry Pi camera's: emulated machines like one frame in several seconds;
- it gives only NV12, which no Raspberry Pi's ISP gives to a program that asked for something else:
  here a program gets what a Pi 4 gives at such sizes, YUV420, with padding at the end of rows.

A camera whose cable is pulled: while the file PULLED exists, no request is answered.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any

import libcamera
import numpy as np
import picamera2.picamera2 as implementation
from numpy.typing import NDArray
from picamera2.allocators import DmaAllocator
from picamera2.request import CompletedRequest

PULLED = Path("/run/software-camera-pulled")
PADDING_BYTES = 20  # at the end of a row
FASTEST_S, SLOWEST_S = 1 / 30, 10.0

Picamera2 = implementation.Picamera2


def _raw_modes(self: Any) -> list[dict[str, Any]]:
    """Return the one mode the sensor of this camera could have."""
    config = self.camera.generate_configuration([libcamera.StreamRole.Viewfinder]).at(0)
    return [{"format": str(config.pixel_format), "size": (config.size.width, config.size.height)}]


class TwoPlaneAllocator(DmaAllocator):  # type: ignore[misc]  # picamera2 has no types
    """Allocates as picamera2 does, then tells libcamera where in each buffer the planes are."""

    def allocate(self, libcamera_config: Any, use_case: Any) -> None:
        super().allocate(libcamera_config, use_case)
        for config in libcamera_config:
            whole = self.frame_buffers[config.stream]
            self.frame_buffers[config.stream] = [self._split(buffer, config) for buffer in whole]

    def _split(self, whole: Any, config: Any) -> Any:
        luma, chroma = libcamera.FrameBuffer.Plane(), libcamera.FrameBuffer.Plane()
        luma_bytes = config.stride * config.size.height
        luma.fd = chroma.fd = whole.planes[0].fd
        luma.offset, luma.length = 0, luma_bytes
        chroma.offset, chroma.length = luma_bytes, config.frame_size - luma_bytes
        buffer = libcamera.FrameBuffer([luma, chroma])
        # libcamera has duplicated the descriptor; picamera2 finds memory by buffer and by number.
        self.mapped_buffers[buffer] = self.mapped_buffers.pop(whole)
        self.mapped_buffers_used[buffer.planes[0].fd] = False
        self.libcamera_fds.append(buffer.planes[0].fd)
        return buffer


class Clock:
    """Hands requests to the pipeline one at a time, as often as the camera takes frames."""

    def __init__(self) -> None:
        self.period_s = FASTEST_S
        self._waiting: queue.SimpleQueue[tuple[Any, Any, int]] = queue.SimpleQueue()
        self._run_number = 0  # of the camera; requests of an earlier one must not be queued
        self._lock = threading.Lock()
        self._queue_request = libcamera.Camera.queue_request
        self._stop = libcamera.Camera.stop
        threading.Thread(target=self._tick, name="camera clock", daemon=True).start()

    def take(self, camera: Any, request: Any) -> None:
        self._waiting.put((camera, request, self._run_number))

    def stop(self, camera: Any) -> None:
        with self._lock:
            self._run_number += 1
            self._stop(camera)

    def _tick(self) -> None:
        due_s = time.monotonic()
        while True:
            camera, request, run_number = self._waiting.get()
            due_s = max(due_s + self.period_s, time.monotonic())
            while PULLED.exists() or time.monotonic() < due_s:
                time.sleep(max(0.01, due_s - time.monotonic()))
            with self._lock:
                if run_number == self._run_number:
                    self._queue_request(camera, request)


clock = Clock()
_start = libcamera.Camera.start


def _start_clocked(camera: Any, controls: Any) -> None:
    for control, value in controls.items():
        if control.name == "FrameDurationLimits":
            clock.period_s = max(FASTEST_S, value[0] / 1e6)
    _start(camera, controls)


def _controls(self: Any) -> dict[str, tuple[int, int, int]]:
    """Return the one control there is, in microseconds."""
    shortest_us = round(FASTEST_S * 1e6)
    return {"FrameDurationLimits": (shortest_us, round(SLOWEST_S * 1e6), shortest_us)}


def _stream_config(self: Any, stream_config: dict[str, Any], granted: Any) -> None:
    """Tell the program what it will get; see `_make_buffer`."""
    _original_stream_config(self, stream_config, granted)
    stream_config["format"] = "YUV420"
    stream_config["stride"] = stream_config["size"][0] + PADDING_BYTES


def _make_buffer(self: Any, name: str) -> NDArray[np.uint8]:
    """Return the NV12 frame as YUV420: its U and V apart, at half the stride, rows padded."""
    width, height = self.config[name]["size"]
    stride = self.config[name]["stride"]
    data = _original_make_buffer(self, name)
    lines = data.reshape(height * 3 // 2, len(data) // (height * 3 // 2))[:, :width]
    luma, chroma = lines[:height], lines[height:]
    planes = [
        _padded(plane, row_bytes)
        for plane, row_bytes in (
            (luma, stride),
            (chroma[:, 0::2], stride // 2),
            (chroma[:, 1::2], stride // 2),
        )
    ]
    return np.concatenate(planes)


def _padded(plane: NDArray[np.uint8], row_bytes: int) -> NDArray[np.uint8]:
    return np.pad(plane, ((0, 0), (0, row_bytes - plane.shape[1]))).ravel()


def _queue_request(camera: Any, request: Any) -> None:
    clock.take(camera, request)


def _stop(camera: Any) -> None:
    clock.stop(camera)


_original_stream_config = Picamera2._update_stream_config
_original_make_buffer = CompletedRequest.make_buffer
Picamera2._get_raw_modes = _raw_modes
Picamera2.sensor_modes = ()
Picamera2.camera_controls = property(_controls)
Picamera2._update_stream_config = _stream_config
CompletedRequest.make_buffer = _make_buffer
implementation.DmaAllocator = TwoPlaneAllocator
libcamera.Camera.start = _start_clocked
libcamera.Camera.stop = _stop
libcamera.Camera.queue_request = _queue_request
libcamera.FrameMetadata.status = libcamera.FrameMetadata.Status.Success
