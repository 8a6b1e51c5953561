"""The photos a network is calibrated and evaluated on; `photos.tsv` lists them.

Each line: use (`calibration` or `held-out`), package, path in it; after a `!` the path inside a
Qt resource file. They were chosen by eye from packages anyone can get; none is shipped.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_app.errors import ModelError
from edge_app.models.builder import fetch

Picture = NDArray[np.uint8]

CALIBRATION, HELD_OUT = "calibration", "held-out"
LIST = Path(__file__).parent / "photos.tsv"
_CLOSER = 0.8  # part of the shorter side that a closer view shows


@dataclass(frozen=True, slots=True)
class Photo:
    package: str
    path: str
    pixels: Picture


@dataclass(frozen=True, slots=True)
class PhotoSet:
    """`versions` of the packages they come from; `sha256` over all files in order."""

    photos: tuple[Photo, ...]
    missing: tuple[str, ...]
    versions: dict[str, str]
    sha256: str


def load_photos(use: str, photo_list: Path = LIST) -> PhotoSet:
    """Fetch the packages (once) and decode the photos listed for `use`. Raises ModelError.

    Photos that the packages of this system do not have are in `missing`.
    """
    photos, missing, packages = [], [], {}
    digest = hashlib.sha256()
    for line in photo_list.read_text().splitlines():
        listed_use, package, path = line.split("\t")
        if listed_use != use:
            continue
        if package not in packages:
            packages[package] = _Package(package)
        data = packages[package].read(path)
        pixels = None if data is None else decode(data)
        if data is None or pixels is None:
            missing.append(f"{package} {path}")
            continue
        digest.update(data)
        photos.append(Photo(package, path, pixels))
    if not photos:
        raise ModelError(f"none of the {use} photos could be had")
    versions = {name: package.version for name, package in packages.items()}
    return PhotoSet(tuple(photos), tuple(missing), versions, digest.hexdigest())


def decode(data: bytes) -> Picture | None:
    """RGB pixels; what is transparent becomes white. None when OpenCV cannot read it."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8:
        return None
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    rgb = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)
    if pixels.shape[2] == 4:
        opacity = pixels[..., 3:].astype(np.float32) / 255
        return np.asarray(np.round(rgb * opacity + 255 * (1 - opacity)), np.uint8)
    return np.asarray(rgb, np.uint8)


def views(pixels: Picture, size_px: int) -> list[Picture]:
    """Four `size_px` squares: centre crop, a closer one mirrored, the first mirrored, another."""
    whole = centre_crop(pixels, size_px)
    side = int(min(pixels.shape[:2]) * _CLOSER)
    upper_left = centre_crop(pixels[:side, :side], size_px)
    lower_right = centre_crop(pixels[-side:, -side:], size_px)
    return [whole, upper_left[:, ::-1], whole[:, ::-1], lower_right]


def centre_crop(pixels: Picture, size_px: int) -> Picture:
    """The largest square in the middle, scaled."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side > size_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (size_px, size_px), interpolation=method), np.uint8)


class _Package:
    """Files of one package: a Debian package by its name, a Python one by `name==version`."""

    def __init__(self, name: str) -> None:
        self._resources: dict[str, dict[str, bytes]] = {}
        self._wheel: zipfile.ZipFile | None = None
        if "==" in name:
            self._wheel = zipfile.ZipFile(fetch.python_package(name))
            self.version = name.split("==")[1]
        else:
            self._files, self.version = fetch.debian_package(name)

    def read(self, path: str) -> bytes | None:
        if self._wheel is not None:
            return self._wheel.read(path) if path in self._wheel.namelist() else None
        outer, _, inner = path.partition("!")
        file = self._files / outer
        if not file.is_file():
            return None
        if not inner:
            return file.read_bytes()
        if outer not in self._resources:
            self._resources[outer] = dict(qt_resources(file.read_bytes()))
        return self._resources[outer].get(inner)


def qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file in a Qt resource file (`qrc` compiled by `rcc -binary`).

    Header: magic, version, offsets of tree, contents and names, all big endian. A tree entry is
    a name and flags, and then children (a folder) or an offset (a file). Contents packed with
    zstd are left out. Raises ModelError.
    """
    try:
        magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
        if magic != b"qres":
            raise ModelError("not a Qt resource file: it does not begin with qres")
        entry_size = 14 if version == 1 else 22
        pending = [(0, "")]
        while pending:
            number, parent = pending.pop()
            entry = tree + number * entry_size
            name, flags, first, second = struct.unpack_from(">IHII", data, entry)
            length = struct.unpack_from(">H", data, names + name)[0]
            start = names + name + 6  # length and hash come before
            text = data[start : start + 2 * length].decode("utf-16-be")
            path = f"{parent}/{text}" if number else ""
            if flags & 2:  # a folder: `first` children from entry `second` on
                if second <= number or tree + (second + first) * entry_size > len(data):
                    raise ModelError(f"damaged Qt resource file: {path or '/'} holds itself")
                pending += [(second + child, path) for child in range(first)]
                continue
            start = contents + second + 4
            content = data[start : start + struct.unpack_from(">I", data, start - 4)[0]]
            if flags & 1:
                yield path, zlib.decompress(content[4:])
            elif not flags & 4:
                yield path, content
    except (struct.error, UnicodeDecodeError, zlib.error) as error:
        raise ModelError(f"damaged Qt resource file: {error}") from error
