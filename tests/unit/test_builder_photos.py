"""The photo list, the readers it needs, and the count of agreements."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.errors import ModelError
from edge_app.models.builder import photos
from edge_app.models.builder.blocks import EMBEDDING, PROBABILITIES
from edge_app.models.builder.evaluate import evaluate
from edge_app.models.builder.photos import centre_crop, decode, qt_resources, views


def write_qt_resources(files: dict[str, bytes], compress: bool = False) -> bytes:
    """One folder `photos` with files in it, as `rcc -binary` lays it out (version 3)."""
    contents, names, entries = b"", b"", []

    def add_name(text: str) -> int:
        nonlocal names
        place = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return place

    entries.append(struct.pack(">IHIIQ", add_name(""), 2, 1, 1, 0))
    entries.append(struct.pack(">IHIIQ", add_name("photos"), 2, len(files), 2, 0))
    for name, data in files.items():
        stored = struct.pack(">I", len(data)) + zlib.compress(data) if compress else data
        entries.append(
            struct.pack(">IHHHIQ", add_name(name), int(compress), 0, 0, len(contents), 0)
        )
        contents += struct.pack(">I", len(stored)) + stored
    tree = b"".join(entries)
    start = 24
    header = struct.pack(
        ">4sIIIII", b"qres", 3, start, start + len(tree), start + len(tree) + len(contents), 0
    )
    return header + tree + contents + names


@pytest.mark.parametrize("compress", [False, True])
def test_a_qt_resource_file_gives_its_files(compress: bool) -> None:
    files = {"cat.webp": b"meow" * 50, "Übung.png": b""}
    found = dict(qt_resources(write_qt_resources(files, compress)))
    assert found == {f"/photos/{name}": data for name, data in files.items()}


@given(st.data())
def test_a_damaged_qt_resource_file_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(write_qt_resources({"a": b"12", "b": b"345"}, compress=True))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        list(qt_resources(bytes(whole[:cut])))
    except ModelError as error:
        message = str(error)
    else:
        message = "Qt resource file"
    assert "Qt resource file" in message


def test_a_qt_resource_folder_that_holds_itself_is_refused() -> None:
    whole = bytearray(write_qt_resources({"a": b"12"}))
    struct.pack_into(">I", whole, 24 + 22 + 10, 1)  # entry 1, the folder: its first child
    with pytest.raises(ModelError, match="holds itself"):
        list(qt_resources(bytes(whole)))


def test_the_list_keeps_held_out_photos_out_of_calibration() -> None:
    lines = [line.split("\t") for line in photos.LIST.read_text().splitlines()]
    assert {use for use, _, _ in lines} == {photos.CALIBRATION, photos.HELD_OUT}
    assert len({(package, path) for _, package, path in lines}) == len(lines)
    uses = [use for use, _, _ in lines]
    assert uses.count(photos.CALIBRATION) >= 300
    assert uses.count(photos.HELD_OUT) >= 150


def test_what_is_transparent_becomes_white_and_channels_are_rgb() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)  # OpenCV's order: blue
    decoded = decode(cv2.imencode(".png", pixels)[1].tobytes())
    assert decoded is not None
    assert decoded[0, 0].tolist() == [0, 0, 255]
    assert decoded[1, 1].tolist() == [255, 255, 255]
    grey = decode(cv2.imencode(".png", np.full((3, 3), 7, np.uint8))[1].tobytes())
    assert grey is not None
    assert grey.shape == (3, 3, 3)
    assert decode(b"no picture") is None


def test_views_are_squares_of_different_parts() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    whole, _, mirrored, _ = pictures = views(pixels, 32)
    assert {picture.shape for picture in pictures} == {(32, 32, 3)}
    np.testing.assert_array_equal(whole[:, ::-1], mirrored)
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_a_centre_crop_keeps_the_middle() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (centre_crop(pixels, 5) == 200).all()
    assert (centre_crop(pixels.transpose(1, 0, 2), 20) == 200).all()


def test_agreement_counts_confident_pictures_only() -> None:
    exact = {
        PROBABILITIES: np.array([[0.9, 0.1], [0.4, 0.35], [0.2, 0.1], [0.1, 0.6]], np.float32),
        EMBEDDING: np.ones((4, 3), np.float32),
    }
    rough = {**exact, PROBABILITIES: exact[PROBABILITIES].copy()}
    rough[PROBABILITIES][1] = [0.3, 0.35]
    rough[PROBABILITIES][3] = [0.7, 0.3]
    counts = {row.confidence: (row.pictures, row.same) for row in evaluate(exact, rough).agreements}
    assert counts == {0.5: (2, 1), 0.3: (3, 1), 0.0: (4, 2)}
    assert evaluate(exact, exact).embedding_cosine == pytest.approx(1)


def test_photos_missing_from_a_package_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that already holds the package is used as it is: no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "edge-app" / "builder" / "some-photos"
    (folder / "files").mkdir(parents=True)
    (folder / "some-photos_1.2-3_all.deb").touch()
    picture = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    (folder / "files" / "a.png").write_bytes(picture)
    (folder / "files" / "b.rcc").write_bytes(write_qt_resources({"c.png": picture}))
    listed = ("a.png", "gone.png", "b.rcc!/photos/c.png", "b.rcc!/photos/gone.png")
    photo_list = tmp_path / "list.tsv"
    photo_list.write_text("".join(f"calibration\tsome-photos\t{path}\n" for path in listed))
    found = photos.load_photos(photos.CALIBRATION, photo_list)
    assert [photo.path for photo in found.photos] == [listed[0], listed[2]]
    assert found.missing == (f"some-photos {listed[1]}", f"some-photos {listed[3]}")
    assert found.versions == {"some-photos": "1.2-3"}
    with pytest.raises(ModelError, match="none of the held-out photos"):
        photos.load_photos(photos.HELD_OUT, photo_list)
