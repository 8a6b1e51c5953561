"""A folder of pictures: decoding, order, damage, pacing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_app.camera.images import ImagesCamera
from edge_app.errors import CameraEnded, CameraError, CameraStalled, CorruptFrame, EdgeAppError
from edge_app.pictures import decode, jpeg_header, reduction
from edge_app.task.image import read_image

WAIT_S = 10.0
RED = (255, 0, 0)


def camera(directory: Path, *, fps: float = 0, loop: bool = False) -> ImagesCamera:
    return ImagesCamera("main", directory, fps=fps, loop=loop, cover_px=(224, 224))


def picture(path: Path, size_px: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    Image.new("RGB", size_px, RED).convert(mode).save(path)
    return path


def test_pictures_come_by_name_whatever_their_kind(tmp_path: Path) -> None:
    for width, name in enumerate(("a.JPG", "b.bmp", "c.jpeg", "d.png", "e.webp"), start=8):
        picture(tmp_path / name, (width, 6))
    (tmp_path / "notes.txt").write_text("no picture, not even a broken one")
    with camera(tmp_path) as pictures:
        widths = [pictures.read(WAIT_S).pixels.shape[1] for _ in range(5)]
        assert widths == [8, 9, 10, 11, 12]
        for _ in range(2):
            with pytest.raises(CameraEnded):
                pictures.read(WAIT_S)


def test_looping_starts_over_and_goes_on_counting(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    with camera(tmp_path, loop=True) as pictures:
        assert [pictures.read(WAIT_S).seq for _ in range(5)] == list(range(5))


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "CMYK"), ("a.jpg", "L"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "I;16")],
)
def test_odd_pictures_become_rgb(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    if mode == "I;16":
        Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(path)
    else:
        picture(path, mode=mode)
    pixels = decode(path.read_bytes(), (1, 1))
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    if mode in ("CMYK", "RGBA", "P"):
        assert abs(pixels.astype(int) - RED).max() < 8


@pytest.mark.parametrize("scaled", [True, False])
def test_exif_turns_the_picture_upright(tmp_path: Path, scaled: bool) -> None:
    image = Image.new("RGB", (640, 480), RED)
    image.paste((0, 0, 255), (0, 0, 320, 480))  # left half blue
    exif = image.getexif()
    exif[0x0112] = 6  # turn right to show: left becomes top
    image.save(tmp_path / "a.jpg", exif=exif)
    pixels = decode((tmp_path / "a.jpg").read_bytes(), (224, 224) if scaled else (480, 640))
    assert pixels is not None
    height, width, _ = pixels.shape
    assert (width, height) == ((240, 320) if scaled else (480, 640))
    assert pixels[10, width // 2, 2] > 240
    assert pixels[-10, width // 2, 0] > 240


@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    cover_px=st.tuples(st.integers(1, 640), st.integers(1, 640)),
)
def test_a_reduced_picture_still_covers(width: int, height: int, cover_px: tuple[int, int]) -> None:
    divisor = reduction((width, height), cover_px)
    if divisor > 1:
        assert min(width, height) / divisor > max(cover_px) - 1
    if divisor < 8:
        assert -(-min(width, height) // (divisor * 2)) < max(cover_px)


def test_a_photo_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", (4000, 3000))
    with camera(tmp_path) as pictures:
        assert pictures.read(WAIT_S).pixels.shape == (375, 500, 3)


def test_jpeg_header_agrees_with_the_decoder_on_progressive_ones_too(tmp_path: Path) -> None:
    for progressive in (False, True):
        path = tmp_path / "a.jpg"
        Image.new("RGB", (123, 77)).save(path, progressive=progressive, icc_profile=b"x" * 70_000)
        assert jpeg_header(path.read_bytes())[0] == (123, 77)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_none(data: bytes) -> None:
    for prefix in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\x00\x11", b"BM", b"\x89PNG\r\n\x1a\n"):
        pixels = decode(prefix + data, (224, 224))
        assert pixels is None or pixels.shape[2] == 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
def test_a_file_cut_short_is_corrupt_and_the_next_is_read(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (300, 300, 3), np.uint8)
    cv2.imwrite(str(tmp_path / name), noise)
    whole = (tmp_path / name).read_bytes()
    picture(tmp_path / "b.png")
    for share in (0.05, 0.5, 0.99):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with camera(tmp_path) as pictures:
            with pytest.raises(CorruptFrame, match=name):
                pictures.read(WAIT_S)
            assert pictures.read(WAIT_S).seq == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("loop", [True, False])
def test_nothing_but_damage_is_an_error_after_one_pass(tmp_path: Path, loop: bool) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with camera(tmp_path, loop=loop) as pictures:
        for _ in range(2):
            with pytest.raises(CorruptFrame):
                pictures.read(WAIT_S)
        with pytest.raises(CameraError, match="none of the 2 pictures") as caught:
            pictures.read(WAIT_S)
        assert not isinstance(caught.value, CorruptFrame | CameraEnded)


def test_a_file_that_vanished_is_corrupt(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with camera(tmp_path) as pictures:
        (tmp_path / "a.png").unlink()
        with pytest.raises(CorruptFrame, match="No such file"):
            pictures.read(WAIT_S)


def test_a_missing_or_empty_directory_is_refused(tmp_path: Path) -> None:
    for directory, found in ((tmp_path, "holds no picture"), (tmp_path / "x", "No such file")):
        with pytest.raises(CameraError, match=found) as caught, camera(directory):
            pass
        assert caught.value.hint


def test_pacing_keeps_to_its_schedule(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with camera(tmp_path, fps=100, loop=True) as pictures:
        times_ns = [pictures.read(WAIT_S).captured_ns for _ in range(21)]
    assert times_ns[-1] - times_ns[0] >= 199_000_000  # never early, however late each one is


def test_a_frame_that_is_not_due_in_time_is_a_stall_and_still_comes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with camera(tmp_path, fps=20, loop=True) as pictures:
        assert pictures.read(WAIT_S).seq == 0
        with pytest.raises(CameraStalled):
            pictures.read(0.001)
        assert pictures.read(WAIT_S).seq == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_camera_and_the_commands_see_the_same_picture(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (8, 6), (255, 0, 0, 100)).convert(mode).save(path)
    with camera(tmp_path) as pictures:
        assert np.array_equal(pictures.read(WAIT_S).pixels, read_image(path))


def test_the_camera_and_the_commands_refuse_the_same_pictures(tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.bmp", (80, 60)).read_bytes()
    (tmp_path / "a.bmp").write_bytes(whole[: len(whole) // 2])
    with camera(tmp_path) as pictures, pytest.raises(CorruptFrame):
        pictures.read(WAIT_S)
    with pytest.raises(EdgeAppError, match=r"a\.bmp"):
        read_image(tmp_path / "a.bmp")
