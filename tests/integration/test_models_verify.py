"""A model that is not what its passport says is refused, with the reason, and never crashes us."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_app import catalog
from edge_app.catalog import ModelFiles
from edge_app.engine.trial import try_model
from edge_app.errors import EXIT_OK, EXIT_UNAVAILABLE, ModelError, UsageError
from edge_app.tools import models
from edge_app.verify import open_verified, verify_model
from tests.colour_model import LABELS, write_labels, write_model, write_pictures

# Each example only writes and hashes a small file.
MANY = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "installed"
    monkeypatch.setenv("EDGE_APP_MODELS_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def added_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model with a passport, as `models add` writes it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    labels = write_labels(source / "labels.txt")
    model = write_model(source / "colour.tflite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_APP_MODELS_DIR", str(folder))
        assert models.add(model, labels=labels, images=write_pictures(source)) == EXIT_OK
    return folder


@pytest.fixture
def colour(added_once: Path, home: Path) -> ModelFiles:
    """A copy of it that a test may damage."""
    shutil.copytree(added_once, home)
    return catalog.resolve("colour")


def reasons(files: ModelFiles) -> str:
    return "; ".join(f"{fault.check}: {fault.message}" for fault in verify_model(files))


def cpu(files: ModelFiles) -> Path:
    assert files.cpu is not None
    return files.cpu


def test_an_added_model_is_as_its_passport_says(colour: ModelFiles) -> None:
    assert colour.labels == LABELS
    assert colour.passport is not None
    assert [golden.top[0][0] for golden in colour.passport.golden] == [0, 1, 2]
    assert verify_model(colour) == []
    engine = open_verified(colour)
    assert engine.info.model == "colour"
    engine.close()


def test_the_shipped_model_is_as_its_passport_says() -> None:
    name = "mobilenet_v2_1.0_224"
    golden = catalog.catalogue()[name].golden
    assert len(golden) >= 6
    assert all(entry.top[0][1] > 0.5 for entry in golden)
    assert models.verify(name) == EXIT_OK


@MANY
@given(position=st.integers(0, 1 << 20), bit=st.integers(0, 7), which=st.booleans())
def test_a_flipped_bit_is_refused(colour: ModelFiles, position: int, bit: int, which: bool) -> None:
    path = cpu(colour) if which else catalog.installed_dir() / "colour.labels.txt"
    good = path.read_bytes()
    bad = bytearray(good)
    bad[position % len(bad)] ^= 1 << bit
    path.write_bytes(bad)
    try:
        assert "is not the file it was" in reasons(colour)
        with pytest.raises(ModelError, match="model colour is refused"):
            open_verified(colour)
    finally:
        path.write_bytes(good)


@MANY
@given(length=st.integers(0, 1 << 20))
def test_a_truncated_file_is_refused(colour: ModelFiles, length: int) -> None:
    good = cpu(colour).read_bytes()
    cpu(colour).write_bytes(good[: length % len(good)])
    try:
        assert f"its passport says {len(good)}" in reasons(colour)
    finally:
        cpu(colour).write_bytes(good)


@FEW
@given(position=st.integers(0, 1 << 20), junk=st.binary(min_size=1, max_size=64))
def test_damage_never_crashes_us_without_a_passport(
    tmp_path: Path, position: int, junk: bytes
) -> None:
    path = write_model(tmp_path / "own.tflite")
    data = bytearray(path.read_bytes())
    start = position % len(data)
    data[start : start + len(junk)] = junk
    path.write_bytes(data)
    files = catalog.resolve(str(path))
    faults = verify_model(files)  # a fault or none, but this process goes on
    assert all(str(path) in fault.message for fault in faults)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"dtype": "float32"}, "input is float32"),
        ({"batch": 2}, r"it must be \[1, height, width, 3\]"),
        ({"dynamic": True}, r"it must be \[1, height, width, 3\]"),
    ],
)
def test_unsuitable_models_are_refused(
    tmp_path: Path, kind: dict[str, object], reason: str
) -> None:
    path = write_model(tmp_path / "own.tflite", **kind)  # type: ignore[arg-type]
    labels = write_labels(tmp_path / "labels.txt")
    with pytest.raises(ModelError, match=f"own is refused: .*{reason}"):
        models.add(path, labels=labels, images=write_pictures(tmp_path))
    assert not catalog.added()


def test_a_float_layer_is_refused_a_passport(tmp_path: Path) -> None:
    path = write_model(tmp_path / "own.tflite", float_scores=True)
    labels = write_labels(tmp_path / "labels.txt")
    assert verify_model(catalog.resolve(str(path), str(labels))) == []  # it runs by its path
    with pytest.raises(ModelError, match="computes in float32"):
        models.add(path, labels=labels, images=write_pictures(tmp_path))


def test_wrong_label_count_is_refused(colour: ModelFiles, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "five.txt", ("a", "b", "c", "d", "e"))
    files = catalog.resolve("colour", str(labels))
    assert reasons(files) == "labels: 5 labels for a model with 3 outputs"
    path = write_model(tmp_path / "own.tflite")
    with pytest.raises(ModelError, match="5 labels for a model with 3 outputs"):
        models.add(path, labels=labels, images=write_pictures(tmp_path))


def test_a_background_class_is_recognised(colour: ModelFiles, tmp_path: Path) -> None:
    two = write_labels(tmp_path / "two.txt", ("green", "blue"))
    assert verify_model(catalog.resolve("colour", str(two))) == []
    four = write_labels(tmp_path / "four.txt", ("background", *LABELS))
    assert verify_model(catalog.resolve("colour", str(four))) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input_px": (9, 8)}, r"input is int8 \[1, 8, 8, 3\]"),
        ({"dtype": "uint8"}, "its passport says uint8"),
        ({"outputs": (3, 7)}, r"outputs have \(3,\) elements"),
    ],
)
def test_another_structure_is_refused(
    colour: ModelFiles, change: dict[str, object], reason: str
) -> None:
    assert colour.passport is not None
    passport = msgspec.structs.replace(colour.passport, **change)
    with pytest.raises(ModelError, match=reason):
        open_verified(replace(colour, passport=passport))


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        (((1, 0.996),), "best class is 0, should be 1"),
        (((0, 0.7),), "class 0 scores 0.996, should be 0.700 within 0.1"),
        (((3, 0.9),), "expects class 3 of 3 classes"),
    ],
)
def test_another_answer_is_refused(
    colour: ModelFiles, top: tuple[tuple[int, float], ...], reason: str
) -> None:
    assert colour.passport is not None
    golden = (msgspec.structs.replace(colour.passport.golden[0], top=top),)
    passport = msgspec.structs.replace(colour.passport, golden=golden)
    found = reasons(replace(colour, passport=passport))
    assert found.startswith("golden: colour.golden-1.png: ")
    assert reason in found


def test_a_lost_golden_image_is_a_fault(colour: ModelFiles) -> None:
    (colour.folder / "colour.golden-2.png").unlink()
    assert reasons(colour).startswith("golden: ")


def test_a_twin_must_be_compiled(tmp_path: Path) -> None:
    path = write_model(tmp_path / "own.tflite")
    (tmp_path / "own_edgetpu.tflite").write_bytes(path.read_bytes())
    assert "not compiled for the Edge TPU" in reasons(catalog.resolve(str(path)))


def test_a_damaged_twin_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "own.tflite")
    twin = tmp_path / "own_edgetpu.tflite"
    twin.write_bytes(path.read_bytes() + b"edgetpu-custom-op")
    labels = write_labels(tmp_path / "labels.txt")
    assert models.add(path, labels=labels, images=write_pictures(tmp_path)) == EXIT_OK
    files = catalog.resolve("own")
    assert files.edgetpu is not None
    assert verify_model(files) == []
    files.edgetpu.write_bytes(twin.read_bytes()[::-1])
    assert "own_edgetpu.tflite: is not the file it was" in reasons(files)


def test_an_unsure_golden_image_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "own.tflite", gain=0.2)
    labels = write_labels(tmp_path / "labels.txt")
    with pytest.raises(ModelError, match="the model is not sure of it"):
        models.add(path, labels=labels, images=write_pictures(tmp_path))
    assert not catalog.added()


@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224_quant", "../escape", "", ".hidden"])
def test_a_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path / ".tflite")
    with pytest.raises(UsageError, match="cannot be called"):
        models.add(path, labels=write_labels(tmp_path / "l.txt"), images=[], name=name)


def test_a_model_added_again_is_replaced(colour: ModelFiles, tmp_path: Path) -> None:
    path = write_model(tmp_path / "uint8.tflite", dtype="uint8")
    labels = write_labels(tmp_path / "labels.txt")
    images = write_pictures(tmp_path)[:1]
    assert models.add(path, labels=labels, images=images, name="colour") == EXIT_OK
    found = catalog.resolve("colour")
    assert found.passport is not None
    assert (found.passport.dtype, len(found.passport.golden)) == ("uint8", 1)


def test_verify_reports_every_installed_model(
    colour: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert models.verify(as_json=True) == EXIT_OK
    records = {record["name"]: record for record in _json_lines(capsys)}
    assert records["colour"]["ok"]
    assert records["colour"]["golden_images"] == 3
    cpu(colour).write_bytes(b"broken")
    assert models.verify("colour", as_json=True) == EXIT_UNAVAILABLE
    (record,) = _json_lines(capsys)
    assert [fault["check"] for fault in record["faults"]] == ["file"]
    assert models.verify("colour") == EXIT_UNAVAILABLE
    assert "colour: REFUSED, file:" in capsys.readouterr().out


def test_a_damaged_passport_does_not_hide_the_others(
    colour: ModelFiles, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "a-damaged-one.toml").write_text("nonsense")
    assert models.verify(as_json=True) == EXIT_UNAVAILABLE
    sound = {str(record["name"]): record["ok"] for record in _json_lines(capsys)}
    assert (sound["a-damaged-one"], sound["colour"]) == (False, True)


def test_a_path_without_a_passport_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.verify(str(write_model(tmp_path / "own.tflite"))) == EXIT_OK
    assert "without a passport" in capsys.readouterr().out


def test_list_tells_what_is_here_and_sound(
    colour: ModelFiles, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "damaged.toml").write_text("nonsense")
    capsys.readouterr()
    assert models.list_models(as_json=True) == EXIT_OK
    records = {record["name"]: record for record in _json_lines(capsys)}
    assert set(records) == {*catalog.catalogue(), "colour", "damaged"}
    assert (records["colour"]["installed"], records["colour"]["verified"]) == (True, True)
    assert records["damaged"]["verified"] is False
    published = records["mobilenet_v1_0.25_128_quant"]
    assert (published["installed"], published["verified"]) == (False, None)
    cpu(colour).write_bytes(b"broken")
    assert models.list_models() == EXIT_OK
    table = capsys.readouterr().out
    (row,) = [line for line in table.splitlines() if line.startswith("colour ")]
    assert row.split()[-2:] == ["yes", "NO"]


@pytest.mark.parametrize(
    ("body", "reason", "timeout_s"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"the runtime crashes on it \(SIGSEGV\)", 60),
        ("time.sleep(60)", "still busy with it after 0.5 s", 0.5),
        ("os._exit(7)", "exit status 7", 60),
        ("raise ValueError('no good')", "the interpreter refuses it: no good", 60),
    ],
)
def test_a_runtime_that_fails_fails_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    reason: str,
    timeout_s: float,
) -> None:
    """The child finds a stand-in that does what damaged files make a runtime do."""
    _stand_in_runtime(tmp_path / "path", body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    path = write_model(tmp_path / "own.tflite")
    with pytest.raises(ModelError, match=reason):
        try_model(path, timeout_s=timeout_s)


def test_a_model_without_a_passport_is_tried_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in_runtime(tmp_path / "path", "os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))  # only the child looks there
    path = write_model(tmp_path / "own.tflite")
    assert "exit status 7" in reasons(catalog.resolve(str(path)))


def _stand_in_runtime(folder: Path, body: str) -> None:
    package = folder / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(
        f"import os, signal, time\nclass Interpreter:\n"
        f"    def __init__(self, **options):\n        {body}\n"
    )


def _json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
