"""Frames as pictures for people."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.domain import Pixels
from edge_app.snapshot import snapshot

LINES = ["espresso  0.93", "main  2026-11-22T18:30:01.123Z"]


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def decoded(jpeg: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


@pytest.mark.parametrize("max_bytes", [256_000, 60_000, 9_000])
def test_the_size_is_bounded_even_of_noise(max_bytes: int) -> None:
    jpeg, size_px = snapshot(noise(1920, 1080), LINES, max_bytes)
    assert len(jpeg) <= max_bytes
    assert decoded(jpeg).shape[1::-1] == size_px
    assert max(size_px) <= 1280


@settings(max_examples=40)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.lists(st.text(max_size=300), max_size=3),
)
def test_any_frame_and_any_words_make_a_picture(width: int, height: int, lines: list[str]) -> None:
    jpeg, size_px = snapshot(noise(width, height), lines)
    assert decoded(jpeg).shape[1::-1] == size_px == (width, height)


def test_the_words_are_on_a_dark_strip_and_the_frame_is_left_alone() -> None:
    white = np.full((480, 640, 3), 255, np.uint8)
    picture = decoded(snapshot(white, LINES)[0])
    assert white.min() == 255
    assert picture[:390].min() > 240  # untouched
    strip = picture[410:]
    assert np.median(strip) < 120
    assert strip.max() > 200  # letters
    blank = decoded(snapshot(white, ["", ""])[0])[410:]
    assert blank.max() < 120


def test_colours_are_kept() -> None:
    red = np.zeros((100, 100, 3), np.uint8)
    red[..., 0] = 255
    blue, green, red_value = decoded(snapshot(red, [])[0])[10, 10]
    assert (blue < 30, green < 30, red_value > 225) == (True, True, True)
