"""From a picture of any kind to the model's pixels, and back."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_app.domain import Pixels
from edge_app.errors import EdgeAppError
from edge_app.task.image import Crop, fit, read_image

RED, WHITE = [255, 0, 0], [255, 255, 255]
CROPS: list[Crop] = list(get_args(Crop))


def halves(width: int, height: int) -> Pixels:
    """Return a picture whose left half is red, the right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return pixels


def test_a_picture_that_fits_is_left_alone() -> None:
    pixels = halves(8, 8)
    for crop in CROPS:
        fitted = fit(pixels, (8, 8), crop)
        assert np.array_equal(fitted.pixels, pixels)
        assert fitted.to_source(3, 5) == (3, 5)


def test_centre_cuts_both_sides() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    fitted = fit(pixels, (10, 10), "centre")
    assert (fitted.pixels == 200).all()
    assert fitted.to_source(0, 0) == (10, 0)
    assert fitted.to_source(10, 10) == (20, 10)


def test_stretch_shows_everything() -> None:
    fitted = fit(halves(40, 10), (10, 20), "stretch")
    assert fitted.pixels[5, 0].tolist() == RED
    assert fitted.pixels[5, 9].tolist() == [0, 0, 255]
    assert fitted.to_source(10, 20) == (40, 10)


def test_letterbox_fills_with_grey() -> None:
    fitted = fit(halves(40, 20), (20, 20), "letterbox")
    assert (fitted.pixels[:5] == 128).all()
    assert (fitted.pixels[15:] == 128).all()
    assert fitted.pixels[10, 0].tolist() == RED
    assert fitted.to_source(0, 5) == (0, 0)
    assert fitted.to_source(20, 15) == (40, 20)


def test_shrinking_a_lot_averages() -> None:
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    pixels = np.repeat(checks[..., np.newaxis], 3, axis=2).astype(np.uint8)
    fitted = fit(pixels, (64, 64))  # a plain bilinear would pick single squares
    assert abs(fitted.pixels.astype(int) - 128).max() <= 1


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (2, 7001), (40_000, 2), (5000, 4000)], ids=str
)
def test_odd_sizes(crop: Crop, size: tuple[int, int]) -> None:
    width, height = size
    fitted = fit(np.full((height, width, 3), 7, np.uint8), (224, 192), crop)
    assert fitted.pixels.shape == (192, 224, 3)
    assert fitted.pixels.dtype == np.uint8
    assert fitted.pixels.flags.c_contiguous
    filled = (fitted.pixels == 7).all(axis=2)
    assert filled.any() if crop == "letterbox" else filled.all()


SIZES = st.integers(1, 300)


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from(CROPS))
def test_the_way_back(width: int, height: int, to_w: int, to_h: int, crop: Crop) -> None:
    fitted = fit(np.zeros((height, width, 3), np.uint8), (to_w, to_h), crop)
    left, top = fitted.to_source(0, 0)
    right, bottom = fitted.to_source(to_w, to_h)
    assert left < right
    assert top < bottom
    near = 1e-6
    if crop == "letterbox":  # all of the source is in it
        assert left <= near
        assert top <= near
        assert right >= width - near
        assert bottom >= height - near
    else:  # all of it is in the source
        assert left >= -near
        assert top >= -near
        assert right <= width + near
        assert bottom <= height + near
    if crop == "stretch":
        assert (right - left, bottom - top) == pytest.approx((width, height))
    x, y = fitted.to_source(to_w / 3, to_h / 5)
    scale, offset = fitted.scale, fitted.offset_px
    assert (x * scale[0] + offset[0], y * scale[1] + offset[1]) == pytest.approx(
        (to_w / 3, to_h / 5)
    )


def saved(tmp_path: Path, name: str, picture: Image.Image, exif: Image.Exif | None = None) -> Path:
    path = tmp_path / name
    picture.save(path, exif=exif or Image.Exif())
    return path


@pytest.fixture
def red_left() -> Image.Image:
    return Image.fromarray(halves(60, 40))


def test_formats_of_every_kind(tmp_path: Path, red_left: Image.Image) -> None:
    files = {
        "plain.png": red_left,
        "plain.jpg": red_left,
        "plain.webp": red_left,
        "plain.bmp": red_left,
        "plain.tiff": red_left,
        "cmyk.jpg": red_left.convert("CMYK"),
        "palette.png": red_left.convert("P"),
        "alpha.png": red_left.convert("RGBA"),
    }
    for name, picture in files.items():
        pixels = read_image(saved(tmp_path, name, picture))
        assert (name, pixels.shape) == (name, (40, 60, 3))
        assert abs(pixels[20, 10].astype(int) - RED).max() < 30, name
        assert abs(pixels[20, 50].astype(int) - [0, 0, 255]).max() < 30, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, red_left: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_image(saved(tmp_path, "turned.jpg", red_left, exif=exif))
    height, width = pixels.shape[:2]
    assert (width, height) == ((60, 40) if orientation <= 4 else (40, 60))
    # where the red half must be, in the words of the EXIF standard: row 0 and column 0 are ...
    red_at = {1: (0, 0), 2: (0, -1), 3: (0, -1), 4: (0, 0)} | {5: (0, 0), 6: (0, 0)}
    row, column = red_at.get(orientation, (-1, 0))
    assert pixels[row, column, 0] > 200


def test_grey_and_16_bits(tmp_path: Path) -> None:
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    pixels = read_image(saved(tmp_path, "deep.png", Image.fromarray(ramp)))
    assert pixels.dtype == np.uint8
    assert abs(pixels[..., 0].astype(int) - ramp // 256).max() <= 1
    assert (pixels[..., 0] == pixels[..., 2]).all()
    grey = Image.fromarray(np.full((8, 8), 77, np.uint8))
    assert (read_image(saved(tmp_path, "grey.png", grey)) == 77).all()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    pixels = read_image(saved(tmp_path, "alpha.png", picture))
    assert pixels[0, 0].tolist() == WHITE
    assert pixels[0, 1].tolist() == RED
    assert abs(pixels[0, 2].astype(int) - 127).max() <= 1


def test_tiny_and_huge(tmp_path: Path) -> None:
    tiny = Image.new("RGB", (1, 1), (9, 8, 7))
    assert read_image(saved(tmp_path, "tiny.png", tiny)).tolist() == [[[9, 8, 7]]]
    huge = Image.new("RGB", (6000, 4000), (9, 8, 7))
    assert read_image(saved(tmp_path, "huge.jpg", huge)).shape == (4000, 6000, 3)


def test_what_is_no_picture(
    tmp_path: Path, red_left: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = saved(tmp_path, "whole.png", red_left).read_bytes()
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"just words",
        "cut.png": whole[: len(whole) // 2],
        "header.jpg": b"\xff\xd8\xff\xe0",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EdgeAppError, match=name) as caught:
            read_image(tmp_path / name)
        assert caught.value.hint
    with pytest.raises(EdgeAppError, match="No such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(EdgeAppError, match="directory"):
        read_image(tmp_path)
    assert capfd.readouterr() == ("", "")
