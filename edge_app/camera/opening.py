"""The one place that picks a camera's backend."""

from __future__ import annotations

from pathlib import Path

from edge_app.camera.sources import parse_source
from edge_app.domain import Camera


def open_camera(
    name: str,
    source: str,
    *,
    size_px: tuple[int, int],
    fps: float,
    loop: bool,
    cover_px: tuple[int, int],
) -> Camera:
    """Make the camera for `source`; it opens on `with`. Imports no backend but its own.

    `size_px`: width and height asked of a camera; `cover_px`: the model's input, which frames may
    be scaled down to but not below. `fps` 0: as fast as the source gives.
    """
    scheme, rest = parse_source(source)
    if scheme == "images":
        from edge_app.camera.images import ImagesCamera

        return ImagesCamera(name, Path(rest), fps=fps, loop=loop, cover_px=cover_px)
    if scheme == "picamera":
        from edge_app.camera.picamera import PiCamera

        return PiCamera(name, int(rest), size_px=size_px, fps=fps, cover_px=cover_px)
    from edge_app.camera import opencv

    if scheme == "file":
        return opencv.ClipCamera(name, Path(rest), fps=fps, loop=loop)
    if scheme == "v4l2":
        return opencv.V4l2Camera(name, Path(rest), size_px=size_px, fps=fps)
    return opencv.RtspCamera(name, rest, fps=fps)
