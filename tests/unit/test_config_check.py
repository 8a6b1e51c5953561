"""What `config check` knows beyond the file: models, labels and sources that can never serve."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_app import config
from edge_app.catalog import resolve, shipped_dir
from edge_app.errors import ConfigError, EdgeAppError, ModelError
from edge_app.tools import config_check
from edge_app.verify import open_verified
from tests import tiny_models

MODEL = "mobilenet_v2_1.0_224"
CAMERA = "picamera:0"


def faults_of(folder: Path, source: str = CAMERA, also: str = "", **model: str) -> list[str]:
    """Return what is said of a configuration with these keys of [model]."""
    path = folder / "config.toml"
    keys = "".join(f"model.{key} = {json.dumps(value)}\n" for key, value in model.items())
    path.write_text(f"{keys}{also}[camera.main]\nsource = {json.dumps(source)}\n")
    try:
        config.load(path, config_check.faults)
    except ConfigError as error:
        return list(error.faults)
    return []


def labels(folder: Path, count: int) -> str:
    path = folder / f"{count}.txt"
    path.write_text("".join(f"label {n}\n" for n in range(count)))
    return str(path)


MODELS = {
    "int8": tiny_models.reshape_model(),
    "uint8": tiny_models.reshape_model("uint8"),
    "float": tiny_models.reshape_model("float32"),
    "floats out": tiny_models.reshape_model(float_output=True),
    "a batch": tiny_models.reshape_model(shape=(2, 2, 2, 3)),
    "grey": tiny_models.reshape_model(shape=(1, 2, 2, 1)),
    "dynamic": tiny_models.reshape_model(signature=(1, -1, -1, 3)),
    "a narrow range": tiny_models.reshape_model(scale=0.1 / 256),
    "no input": tiny_models.no_input_model(),
    "no output": tiny_models.no_output_model(),
    "noise": bytes(range(256)) * 20,
    "noise after the mark": b"1234TFL3" + bytes(range(256)) * 20,
    "cut short": tiny_models.reshape_model()[:-40],
    "empty": b"",
}


@pytest.mark.parametrize("name", MODELS)
def test_it_says_of_a_model_what_opening_it_would(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(MODELS[name])
    refused = ""
    try:
        open_verified(resolve(str(path))).close()
    except EdgeAppError as error:
        refused = str(error)
    faults = faults_of(tmp_path, name=str(path))
    assert bool(faults) == bool(refused), refused
    for fault in faults:
        assert fault.startswith(f"model.name: {path}: ")


def test_labels_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(MODELS["int8"])
    for model, classes in ((str(path), tiny_models.CLASSES), (MODEL, 1000)):
        assert faults_of(tmp_path, name=model, labels=labels(tmp_path, classes)) == []
        assert faults_of(tmp_path, name=model, labels=labels(tmp_path, classes - 1)) == []
        (fault,) = faults_of(tmp_path, name=model, labels=labels(tmp_path, 5))
        assert fault.startswith(f"model.labels: 5 labels for a model with {classes} outputs")
    with pytest.raises(ModelError, match="5 labels") as caught:
        open_verified(resolve(str(path), labels(tmp_path, 5)))
    assert "model.labels" in caught.value.hint
    (fault,) = faults_of(tmp_path, labels=labels(tmp_path, 0))
    assert fault.startswith(f"model.labels: labels {tmp_path / '0.txt'}: the file is empty")


def test_models_that_are_not_there_or_have_no_file_for_where_they_are_to_run(
    tmp_path: Path,
) -> None:
    (fault,) = faults_of(tmp_path, name="mobilenet_v2_1.0_242")
    assert fault.startswith("model.name: no model is called")
    compiled = tmp_path / "m_edgetpu.tflite"
    compiled.write_bytes(MODELS["int8"])
    (fault,) = faults_of(tmp_path, name=str(compiled))
    assert fault.startswith("model.name: ")
    assert "m.tflite, beside it" in fault
    (fault,) = faults_of(tmp_path, name=MODEL, backend="edgetpu")
    assert fault.startswith('model.backend: found "edgetpu"')


def test_a_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_check, "RUNTIMES", {"litert": "ai_edge_litert", "tflite": "absent"})
    assert faults_of(tmp_path, runtime="litert") == faults_of(tmp_path) == []
    (fault,) = faults_of(tmp_path, runtime="tflite")
    assert fault.startswith('model.runtime: found "tflite": absent not installed')


def test_without_the_format_description_a_model_is_left_to_the_runtime(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(MODELS["float"])
    (tmp_path / "config.toml").write_text(
        f'model.name = "{path}"\n[camera.main]\nsource = "{CAMERA}"\n'
    )
    script = (
        "import sys; sys.modules['ai_edge_litert.schema_py_generated'] = None\n"
        "from edge_app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "config", "check", "--config", tmp_path / "config.toml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_sources_of_another_kind(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for source, said in (
        (f"images:{file}", "a file; allowed: a folder"),
        (f"file:{folder}", "a folder; allowed: a video"),
        (f"v4l2:{file}", "no device"),
    ):
        (fault,) = faults_of(tmp_path, source)
        assert fault.startswith(f'camera.main.source: found "{source}": {said}')
    for source in (f"images:{folder}", f"file:{file}", "v4l2:/dev/null", f"file:{folder}/none"):
        assert faults_of(tmp_path, source) == []


def test_everything_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(MODELS["noise"])
    faults = faults_of(
        tmp_path,
        "picam:0",
        f'model.name = "{tmp_path / "m.tflite"}"\nmodel.top_k = 0\nmqtt.base = "$SYS"\n',
        labels=labels(tmp_path, 0),
    )
    keys = [fault.split(": ")[0] for fault in faults]
    assert keys == ["model.top_k", "mqtt.base", "camera.main.source", "model.labels", "model.name"]


def test_what_is_not_there_now_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()

    def notes(source: str) -> list[str]:
        text = f'[camera.main]\nsource = "{source}"\n'
        return list(config_check.notes(config.parse(text, "test.toml")))

    assert notes(f"images:{folder}/none") == [
        f"camera.main.source: {folder}/none is not there now: no such file"
    ]
    (note,) = notes(f"images:{folder}")
    assert f"{folder} holds no picture" in note
    shutil.copy(shipped_dir() / "samples" / "cat.jpg", folder)
    assert notes(f"images:{folder}") == []
    assert notes(f"file:{os.devnull}") == []


def test_a_spool_in_the_place_of_something_else(tmp_path: Path) -> None:
    mqtt = "mqtt.url = 'mqtt://broker'\n"
    (fault,) = faults_of(tmp_path, also=f"{mqtt}spool.path = '{tmp_path}'\n")
    assert fault.startswith(f'spool.path: found "{tmp_path}": a directory; allowed: ')
    (fault,) = faults_of(tmp_path, also=f"{mqtt}spool.path = '{__file__}'\n")
    assert "a file of something else" in fault
    assert faults_of(tmp_path, also=f"{mqtt}spool.path = '{tmp_path}/spool.db'\n") == []
    assert faults_of(tmp_path, also=f"spool.path = '{tmp_path}'\n") == [], "without a broker: none"


def test_a_spool_on_a_disk_that_is_not_there_is_worth_a_note(tmp_path: Path) -> None:
    text = "mqtt.url = 'mqtt://broker'\nspool.path = '{}'\n[camera.main]\nsource = 'picamera:0'\n"

    def notes(path: Path) -> list[str]:
        return list(config_check.notes(config.parse(text.format(path), "test")))

    (note,) = notes(tmp_path / "not" / "mounted" / "spool.db")
    assert note.startswith(f"spool.path: {tmp_path}/not is not there now")
    assert notes(tmp_path / "made" / "spool.db") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
def test_what_this_user_may_not_see_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    model = closed / "m.tflite"
    model.write_bytes(MODELS["int8"])
    text = f'model.name = "{model}"\n[camera.a]\nsource = "images:{closed}/pictures"\n'
    config.parse(text, "test.toml", config_check.faults)
    script = """
import os, sys
import edge_app.publish.claim  # while its own files can be read
from edge_app import config
from edge_app.errors import ConfigError
from edge_app.tools import config_check
os.setuid(65534)
try:
    config.parse(sys.argv[1], "test.toml", config_check.faults)
except ConfigError as error:
    print(*error.faults)
print(*config_check.notes(config.parse(sys.argv[1], "test.toml")))
"""
    closed.chmod(0o700)
    command = [sys.executable, "-c", script, text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    fault, note = done.stdout.splitlines()
    assert fault.startswith(f"model.name: {model}: no such file, or none that this user may see")
    assert note.endswith("is not there now: permission denied")
