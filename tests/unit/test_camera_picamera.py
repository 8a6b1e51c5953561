"""The pure parts of the Raspberry Pi camera: sizes, durations, clocks, pixel formats."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.camera.picamera import (
    capture_time_ns,
    covering_size,
    frame_duration,
    full_view_mode,
    unpack,
)
from edge_app.errors import CameraError

LENGTH = st.integers(16, 4096)
SECOND_NS = 10**9


@pytest.mark.parametrize(
    ("size_px", "cover_px", "stream_px"),
    [
        ((640, 480), (224, 224), (300, 224)),
        ((1920, 1080), (224, 224), (400, 224)),
        ((480, 640), (224, 224), (224, 300)),
        ((320, 240), (320, 320), (320, 240)),  # nothing to be gained: the ISP only scales down
        ((640, 480), (640, 480), (640, 480)),
    ],
)
def test_covering_size(
    size_px: tuple[int, int], cover_px: tuple[int, int], stream_px: tuple[int, int]
) -> None:
    assert covering_size(size_px, cover_px) == stream_px


@given(st.tuples(LENGTH, LENGTH), st.tuples(LENGTH, LENGTH))
def test_covering_size_covers_keeps_aspect_and_is_even(
    size_px: tuple[int, int], cover_px: tuple[int, int]
) -> None:
    width, height = covering_size(size_px, cover_px)
    assert width % 2 == height % 2 == 0
    assert width <= size_px[0]
    assert height <= size_px[1]
    even = [length - length % 2 for length in size_px]
    assert width >= min(cover_px[0], even[0])
    assert height >= min(cover_px[1], even[1])
    scale = min(1, max(cover_px[0] / size_px[0], cover_px[1] / size_px[1]))
    assert abs(width - scale * size_px[0]) <= 2
    assert abs(height - scale * size_px[1]) <= 2


def test_the_smallest_mode_that_shows_nearly_all_and_covers() -> None:
    modes = [  # of an ov5647
        {"size": (640, 480), "crop_limits": (16, 0, 2560, 1920)},
        {"size": (1296, 972), "crop_limits": (0, 0, 2592, 1944)},
        {"size": (1920, 1080), "crop_limits": (348, 434, 1928, 1080)},
    ]
    assert full_view_mode(modes, (300, 224)) == {"output_size": (640, 480)}
    assert full_view_mode(modes, (800, 600)) == {"output_size": (1296, 972)}
    assert full_view_mode(modes, (4000, 3000)) == {"output_size": (1296, 972)}
    assert full_view_mode([{"format": "YUYV"}], (300, 224)) == {}


def test_frame_duration_stays_within_what_the_camera_lists() -> None:
    controls = {"FrameDurationLimits": (10_000, 200_000, None)}
    assert frame_duration(30, controls) == {"FrameDurationLimits": (33_333, 33_333)}
    assert frame_duration(0, controls) == {"FrameDurationLimits": (10_000, 10_000)}
    assert frame_duration(500, controls) == {"FrameDurationLimits": (10_000, 10_000)}
    assert frame_duration(1, controls) == {"FrameDurationLimits": (200_000, 200_000)}
    assert frame_duration(30, {"Brightness": (-1.0, 1.0, 0.0)}) == {}


@pytest.mark.parametrize("slept_ns", [0, 3600 * SECOND_NS])
@pytest.mark.parametrize("boottime", [True, False])
def test_capture_time_is_monotonic_whichever_clock_it_was(slept_ns: int, boottime: bool) -> None:
    now_ns, taken_ns = 5000 * SECOND_NS, 5000 * SECOND_NS - 12_000_000
    sensor_ns = taken_ns + slept_ns if boottime else taken_ns
    assert capture_time_ns(sensor_ns, now_ns, slept_ns) == taken_ns


@pytest.mark.parametrize("sensor_ns", [None, 0, 17, 10**18])
def test_a_senseless_capture_time_is_now(sensor_ns: int | None) -> None:
    assert capture_time_ns(sensor_ns, 5000 * SECOND_NS, 0) == 5000 * SECOND_NS


ORDER = {"BGR888": "RGB", "RGB888": "BGR", "XBGR8888": "RGBX", "XRGB8888": "BGRX"}  # in memory


@pytest.mark.parametrize("padding", [0, 52])
@pytest.mark.parametrize("pixel_format", list(ORDER))
def test_unpack_rgb(pixel_format: str, padding: int) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (10, 12, 3), np.uint8)
    planes = {name: picture[:, :, i] for i, name in enumerate("RGB")}
    planes["X"] = np.full((10, 12), 0x77, np.uint8)
    packed = np.dstack([planes[name] for name in ORDER[pixel_format]]).reshape(10, -1)
    data = np.pad(packed, ((0, 0), (0, padding)), constant_values=0xEE).ravel()
    data = np.append(data, np.zeros(4096, np.uint8))  # buffers come in pages
    pixels = unpack(data, pixel_format, (12, 10), packed.shape[1] + padding)
    assert np.array_equal(pixels, picture)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("height", [10, 12])
@pytest.mark.parametrize("padding", [0, 52])
def test_unpack_yuv420(padding: int, height: int) -> None:
    bgr = np.zeros((height, 12, 3), np.uint8)
    bgr[:, :6] = (0, 0, 255)
    bgr[: height // 2, 6:] = (255, 0, 0)
    planar = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)
    expected = cv2.cvtColor(planar, cv2.COLOR_YUV2RGB_I420)
    stride = 12 + padding
    flat = planar.ravel()
    luma, chroma = flat[: 12 * height].reshape(height, 12), flat[12 * height :].reshape(-1, 6)
    data = np.concatenate(
        [
            np.pad(luma, ((0, 0), (0, padding)), constant_values=0xEE).ravel(),
            np.pad(chroma, ((0, 0), (0, padding // 2)), constant_values=0xEE).ravel(),
        ]
    )
    assert np.array_equal(unpack(data, "YUV420", (12, height), stride), expected)


def test_a_buffer_shorter_than_its_stride_says_is_an_error() -> None:
    with pytest.raises(CameraError, match="64 bytes"):
        unpack(np.zeros(64, np.uint8), "BGR888", (12, 10), 36)
