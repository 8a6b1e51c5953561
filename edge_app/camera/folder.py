"""Which files of a folder are its pictures, by their names: known without a decoder."""

from __future__ import annotations

from pathlib import Path

from edge_app.errors import CameraError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def picture_files(directory: Path, *, camera: str) -> list[Path]:
    """List a directory's pictures by name; CameraError when there is none."""
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise CameraError(
            f"camera {camera}: {directory} cannot be listed: {error.strerror}",
            hint="images: takes a directory that this user may read",
        ) from None
    if not names:
        raise CameraError(
            f"camera {camera}: {directory} holds no picture",
            hint=f"put files there that end in {', '.join(SUFFIXES)}",
        )
    return names
