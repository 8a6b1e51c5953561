"""The shipped catalogue and photos are what they say, and models are found where they should be."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import cv2
import pytest

from edge_app import catalog
from edge_app.catalog import ModelFiles
from edge_app.errors import ModelError
from edge_app.models.builder import network
from edge_app.tools.passports import to_toml
from tests.colour_model import LABELS, write_labels, write_model

PHOTOS = tomllib.loads((catalog.shipped_dir() / "samples/manifest.toml").read_text())["photo"]
PUBLISHED = "mobilenet_v1_0.25_128_quant"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setenv("EDGE_APP_MODELS_DIR", str(folder))
    return folder


def test_costs_are_those_of_the_architecture() -> None:
    for name, passport in catalog.catalogue().items():
        _, version, width, _ = passport.architecture.split("_")
        build = network.mobilenet_v1 if version == "v1" else network.mobilenet_v2
        side_px = passport.input_px[0]
        expected = build(float(width), side_px, passport.outputs[0])
        assert (passport.macs, passport.params) == (expected.macs, expected.params), name
        assert passport.architecture == expected.name
        assert passport.input_px == (side_px, side_px)


def test_a_hash_comes_with_a_size() -> None:
    for name, passport in catalog.catalogue().items():
        assert passport.licence, name
        assert passport.source, name
        for file in passport.files:
            assert bool(file.sha256) == bool(file.bytes), f"{name}: {file.file}"
            assert file.sha256 or passport.base_url, f"{name}: {file.file} ships without a hash"


def test_every_photo_has_its_origin() -> None:
    folder = catalog.shipped_dir() / "samples"
    assert {photo["file"] for photo in PHOTOS} == {path.name for path in folder.glob("*.jpg")}
    for photo in PHOTOS:
        data = (folder / photo["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == photo["sha256"], photo["file"]
        assert len(data) <= 60_000
        assert photo["licence"] in {"CC0-1.0", "public domain"}
        assert all(photo[key] for key in ("author", "source", "licence_statement", "obtained"))


def test_photos_look_like_camera_frames() -> None:
    for photo in PHOTOS:
        pixels = cv2.imread(str(catalog.shipped_dir() / "samples" / photo["file"]))
        assert pixels is not None
        assert pixels.shape == (480, 640, 3)


def test_a_path_finds_its_twin(tmp_path: Path) -> None:
    cpu, twin = write_model(tmp_path / "m.tflite"), tmp_path / "m_edgetpu.tflite"
    assert catalog.resolve(str(cpu)).edgetpu is None
    twin.write_bytes(b"twin")
    labels = write_labels(tmp_path / "labels.txt")
    expected = ModelFiles("m", cpu, twin, LABELS, None, None, tmp_path)
    assert catalog.resolve(str(cpu), str(labels)) == expected
    assert catalog.resolve(str(twin), str(labels)) == expected


def test_a_compiled_model_may_be_alone(tmp_path: Path) -> None:
    twin = tmp_path / "m_edgetpu.tflite"
    twin.write_bytes(b"twin")
    files = catalog.resolve(str(twin))
    assert (files.cpu, files.edgetpu, files.labels) == (None, twin, ())


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        catalog.resolve(str(tmp_path / "m.tflite"))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match=f"did you mean {PUBLISHED}?"):
        catalog.resolve(PUBLISHED.replace("quant", "qant"))


def test_a_model_that_was_not_fetched_says_how() -> None:
    with pytest.raises(ModelError, match="not installed") as caught:
        catalog.resolve(PUBLISHED)
    assert caught.value.hint == f"edge-app models fetch {PUBLISHED}"


def test_fetched_files_are_found(home: Path, tmp_path: Path) -> None:
    (home / f"{PUBLISHED}.tflite").write_bytes(b"cpu")
    write_labels(home / "imagenet_labels.txt")
    files = catalog.resolve(PUBLISHED)
    assert (files.cpu, files.edgetpu) == (home / f"{PUBLISHED}.tflite", None)
    assert files.labels_file == home / "imagenet_labels.txt"
    (home / f"{PUBLISHED}_edgetpu.tflite").write_bytes(b"twin")
    assert catalog.resolve(PUBLISHED).edgetpu == home / f"{PUBLISHED}_edgetpu.tflite"
    own = write_labels(tmp_path / "rot-gruen-blau.txt", ("rot", "grün", "blau"))
    replaced = catalog.resolve(PUBLISHED, str(own))
    assert (replaced.labels, replaced.labels_file) == (("rot", "grün", "blau"), None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("task = ", "Invalid value"),
        ('task = "classify"', "missing required field"),
        ('task = "classify"\ncolour = 3', "unknown field"),
    ],
)
def test_a_damaged_passport_names_itself(home: Path, text: str, reason: str) -> None:
    (home / "mine.toml").write_text(text)
    with pytest.raises(ModelError, match=rf"mine\.toml: cannot be read: .*{reason}"):
        catalog.resolve("mine")


def test_a_passport_cannot_name_a_file_elsewhere(home: Path) -> None:
    text = to_toml(catalog.catalogue()[PUBLISHED])
    (home / "mine.toml").write_text(text.replace(f'"{PUBLISHED}.tflite"', '"../x.tflite"'))
    with pytest.raises(ModelError, match=r"mine\.toml: cannot be read"):
        catalog.resolve("mine")


def test_passports_survive_being_written(home: Path) -> None:
    for name, passport in catalog.catalogue().items():
        (home / f"copy-of-{name}.toml").write_text(to_toml(passport))
        assert catalog.passport(f"copy-of-{name}") == (passport, home)


def test_where_models_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_APP_MODELS_DIR")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge-app:/var/lib/other")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert catalog.installed_dir() == Path("/var/lib/edge-app/models")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert catalog.installed_dir() == Path("/var/lib/edge-app/models")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert catalog.installed_dir() == tmp_path / "edge-app" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.installed_dir() == tmp_path / ".local/share/edge-app/models"
