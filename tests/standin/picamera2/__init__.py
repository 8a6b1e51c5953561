"""Stands in for the picamera2 library, on the Python path of tests that have no Raspberry Pi.

As far as the appliance uses it, it behaves as the real one (0.3) was read to: requests must be
released or the camera starves, a timed-out job stays queued, unlisted controls and unknown
configuration keys are refused, `stop` waits for ever on a camera that no longer answers, buffers
are used again, rows are padded to the stride. `world` is the hardware: tests change it.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RED_YUV = (82, 90, 240)  # BT.601, limited range


@dataclass
class World:
    """What is plugged in, and what it grants."""

    models: tuple[str, ...] = ("imx708",)
    busy: bool = False
    granted_format: str | None = None
    stride_align: int = 64
    controls: dict[str, tuple[Any, Any, Any]] = field(
        default_factory=lambda: {"FrameDurationLimits": (1000, 200_000, None)}
    )
    clock: int | None = time.CLOCK_BOOTTIME
    answers: threading.Event = field(default_factory=threading.Event)  # cleared: cable pulled
    set_controls: dict[str, Any] = field(default_factory=dict)
    stops: int = 0
    sensor: dict[str, Any] | None = None  # what was asked of it


world = World()
world.answers.set()


def reset() -> World:
    """Plug a new camera in, and let whoever waits for the old one go."""
    global world  # noqa: PLW0603 - there is one piece of hardware
    world.answers.set()
    world = World()
    world.answers.set()
    return world


class CompletedRequest:
    def __init__(self, camera: Picamera2, buffer: NDArray[np.uint8], metadata: dict[str, Any]):
        self._camera, self._buffer, self._metadata = camera, buffer, metadata
        self._held = True

    def get_metadata(self) -> dict[str, Any]:
        return dict(self._metadata)

    def make_buffer(self, name: str) -> NDArray[np.uint8]:
        if name != "main":
            raise RuntimeError(f"Stream {name!r} is not defined")
        if not self._held:
            raise AssertionError("used after release")
        return np.array(self._buffer)

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("CompletedRequest: lock now has negative ref_count")
        self._held = False
        self._camera.recycle(self._buffer)


class Picamera2:
    def __init__(self, camera_num: int = 0) -> None:
        self._world = world
        if world.busy:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.model = world.models[camera_num]
        self._config: dict[str, Any] = {}
        self._jobs: deque[Future[CompletedRequest]] = deque()
        self._changed = threading.Condition()
        self._free: deque[NDArray[np.uint8]] = deque()
        self._started = False
        self._thread: threading.Thread | None = None
        atexit.register(self.close)

    @property
    def sensor_modes(self) -> list[dict[str, Any]]:
        return [  # of an imx219
            {"size": (640, 480), "crop_limits": (1000, 752, 1280, 960)},
            {"size": (1640, 1232), "crop_limits": (0, 0, 3280, 2464)},
            {"size": (1920, 1080), "crop_limits": (680, 692, 1920, 1080)},
            {"size": (3280, 2464), "crop_limits": (0, 0, 3280, 2464)},
        ]

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        return [{"Model": model, "Num": i} for i, model in enumerate(world.models)]

    def create_video_configuration(
        self,
        main: dict[str, Any],
        raw: dict[str, Any] | None = None,
        sensor: dict[str, Any] | None = None,
        buffer_count: int = 6,
    ) -> dict[str, Any]:
        for key in main:
            if key not in ("format", "size", "stride", "preserve_ar"):
                raise ValueError(f"Bad key {key!r}")
        if bad := set(sensor or {}) - {"bit_depth", "output_size"}:
            raise RuntimeError(f"Unexpected keys {bad} in sensor configuration")
        return {"main": dict(main), "raw": raw, "sensor": sensor, "buffer_count": buffer_count}

    def configure(self, config: dict[str, Any]) -> None:
        self._world.sensor = config["sensor"]
        width, height = config["main"]["size"]
        if width % 2 or height % 2:
            raise RuntimeError("width and height should be even")
        name = self._world.granted_format or config["main"]["format"]
        row = width * {"YUV420": 1, "YUYV": 2, "RGB888": 3, "BGR888": 3}.get(name, 4)
        stride = -(-row // self._world.stride_align) * self._world.stride_align
        granted = {"format": name, "size": (width, height), "stride": stride}
        self._config = {**config, "main": granted}
        rows = height * 3 // 2 if name == "YUV420" else height
        count = config["buffer_count"]
        self._free = deque(np.zeros(rows * stride, np.uint8) for _ in range(count))

    def camera_configuration(self) -> dict[str, Any]:
        return self._config

    @property
    def camera_controls(self) -> dict[str, tuple[Any, Any, Any]]:
        return self._world.controls if self._config else {}

    def set_controls(self, controls: dict[str, Any]) -> None:
        for name in controls:
            if name not in self._world.controls:
                raise RuntimeError(f"Control {name} is not advertised by libcamera")
        self._world.set_controls.update(controls)

    def start(self) -> None:
        self._started = True
        self._thread = threading.Thread(target=self._run, name="picamera2", daemon=True)
        self._thread.start()

    def capture_request(self, wait: float) -> CompletedRequest:
        job: Future[CompletedRequest] = Future()
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        return job.result(timeout=wait)  # on time-out the job stays queued

    def recycle(self, buffer: NDArray[np.uint8]) -> None:
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    def stop(self) -> None:
        self._world.stops += 1
        self._world.answers.wait()
        with self._changed:
            self._started = False
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        atexit.unregister(self.close)
        self.stop()

    def _run(self) -> None:
        while True:
            self._world.answers.wait()
            with self._changed:
                self._changed.wait_for(
                    lambda: not self._started or (bool(self._jobs) and bool(self._free))
                )
                if not self._started or self._world is not world:
                    return
                if not self._world.answers.is_set():
                    continue
                job, buffer = self._jobs.popleft(), self._free.popleft()
            metadata = {}
            if self._world.clock is not None:
                metadata["SensorTimestamp"] = time.clock_gettime_ns(self._world.clock)
            paint_red(buffer, self._config["main"])
            job.set_result(CompletedRequest(self, buffer, metadata))


def paint_red(buffer: NDArray[np.uint8], stream: dict[str, Any]) -> None:
    """Fill a raw buffer with a red picture; the padding gets a colour that must not be seen."""
    width, height = stream["size"]
    lines = buffer.reshape(-1, stream["stride"])
    lines[:] = 0xEE
    if stream["format"] == "YUV420":
        y, u, v = RED_YUV
        lines[:height, :width] = y
        chroma = lines[height:].reshape(height, stream["stride"] // 2)
        chroma[: height // 2, : width // 2] = u
        chroma[height // 2 :, : width // 2] = v
        return
    pixel = {  # in memory order
        "BGR888": (255, 0, 0),
        "RGB888": (0, 0, 255),
        "XBGR8888": (255, 0, 0, 255),
        "XRGB8888": (0, 0, 255, 255),
    }.get(stream["format"], (0, 0))
    lines[:, : width * len(pixel)] = np.tile(np.array(pixel, np.uint8), width)
