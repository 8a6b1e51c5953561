"""From a picture to exactly the pixels a model takes, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from edge_app.domain import Pixels
from edge_app.errors import EdgeAppError
from edge_app.pictures import decode

Crop = Literal["centre", "stretch", "letterbox"]

_BORDER = 128  # mid grey: the code nearest to "nothing" for a model quantised around 128


@dataclass(frozen=True, slots=True)
class Fitted:
    """A picture at the model's size, and where it came from.

    `source = (x - offset) / scale`, per axis, maps a model pixel back to the source picture.
    """

    pixels: Pixels
    scale: tuple[float, float]
    offset_px: tuple[float, float]

    def to_source(self, x_px: float, y_px: float) -> tuple[float, float]:
        """Map a point of the fitted picture to the source picture, in pixels."""
        return (
            (x_px - self.offset_px[0]) / self.scale[0],
            (y_px - self.offset_px[1]) / self.scale[1],
        )


def fit(pixels: Pixels, size_px: tuple[int, int], crop: Crop = "centre") -> Fitted:
    """Bring `pixels` (any height x width x 3) to `size_px` (width, height).

    `centre` keeps the aspect ratio and cuts what sticks out on both sides; `stretch` does not keep
    it; `letterbox` keeps it and fills the rest with mid grey. Square models trained on centre crops
    lose 3 to 6 points of top-1 accuracy when a 4:3 picture is stretched instead.
    """
    source_h, source_w = pixels.shape[:2]
    width, height = size_px
    scale_x, scale_y = width / source_w, height / source_h
    if crop == "stretch":
        return Fitted(_resize(pixels, size_px), (scale_x, scale_y), (0.0, 0.0))
    if crop == "letterbox":
        scale = min(scale_x, scale_y)
        inner_w, inner_h = max(1, round(source_w * scale)), max(1, round(source_h * scale))
        left, top = (width - inner_w) // 2, (height - inner_h) // 2
        canvas = np.full((height, width, 3), _BORDER, np.uint8)
        canvas[top : top + inner_h, left : left + inner_w] = _resize(pixels, (inner_w, inner_h))
        return Fitted(canvas, (inner_w / source_w, inner_h / source_h), (left, top))
    scale = max(scale_x, scale_y)
    cut_w, cut_h = max(1, round(width / scale)), max(1, round(height / scale))
    left, top = (source_w - cut_w) // 2, (source_h - cut_h) // 2
    cut = pixels[top : top + cut_h, left : left + cut_w]
    scale_x, scale_y = width / cut_w, height / cut_h
    return Fitted(_resize(cut, size_px), (scale_x, scale_y), (-left * scale_x, -top * scale_y))


def _resize(pixels: Pixels, size_px: tuple[int, int]) -> Pixels:
    if (pixels.shape[1], pixels.shape[0]) == size_px:
        return np.ascontiguousarray(pixels)
    # Bilinear looks at 2 x 2 source pixels, so it aliases when shrinking by more than 2; averaging
    # over the area does not, and costs about ten times as much.
    shrink = max(pixels.shape[1] / size_px[0], pixels.shape[0] / size_px[1])
    how = cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, size_px, interpolation=how), np.uint8)


def read_image(path: Path) -> Pixels:
    """Decode an image file to height x width x 3 RGB, upright (EXIF), 8 bits a channel.

    Grey, CMYK and 16-bit pictures are converted; transparency is laid over white.
    Raises EdgeAppError when the file cannot be read or is no picture OpenCV knows.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EdgeAppError(f"{path}: cannot be read: {error.strerror}") from error
    pixels = decode(content)
    if pixels is None:
        raise EdgeAppError(
            f"{path}: damaged, or not an image that can be decoded",
            hint="JPEG, PNG, WebP, BMP and TIFF are known; is the file complete?",
        )
    return pixels
