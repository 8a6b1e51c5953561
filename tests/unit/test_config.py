"""The configuration file: what is allowed, and what is said about what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edge_app import config
from edge_app.errors import ConfigError
from edge_app.publish.link import read_password
from edge_app.tools import demo

MINIMAL = '[camera.main]\nsource = "picamera:0"\n'


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "test.toml")
    assert caught.value.exit_code == 78
    return list(caught.value.faults)


def edge_app(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_one_camera_is_enough() -> None:
    found = config.parse(MINIMAL, "test.toml")
    assert found.camera["main"].size_px == (640, 480)
    assert (found.publish.mode, found.publish.heartbeat_s) == ("changes", 60.0)
    assert (found.mqtt.url, found.model.backend, found.spool.max_mb) == ("", "auto", 64)
    assert found.device.id


def test_every_fault_is_told_at_once() -> None:
    faults = faults_of(
        """
        [device]
        id = "Front Door"
        nmae = "x"
        [camera.main]
        source = "picam:0"
        size_px = [640]
        crop = "center"
        fps = "fast"
        [model]
        treshold = 0.5
        top_k = 0
        backend = "gpu"
        [publish]
        heartbeat_s = nan
        [mqtt]
        url = "http://broker"
        [spol]
        """
    )
    told = {fault.split(": ")[0]: fault for fault in faults}
    assert told.keys() == {
        "device.id",
        "device.nmae",
        "camera.main.source",
        "camera.main.size_px",
        "camera.main.crop",
        "camera.main.fps",
        "model.treshold",
        "model.top_k",
        "model.backend",
        "publish.heartbeat_s",
        "mqtt.url",
        "spol",
    }
    assert 'found "Front Door"; allowed: 1 to 63 of a-z' in told["device.id"]
    assert '"center" (did you mean centre?); allowed: "centre"' in told["camera.main.crop"]
    assert "did you mean threshold?" in told["model.treshold"]
    assert "did you mean spool?" in told["spol"]
    assert "found 0; allowed: a whole number, at least 1" in told["model.top_k"]
    assert "a list of 2, each a whole number" in told["camera.main.size_px"]
    assert "picamera:" in told["camera.main.source"]


def test_no_camera() -> None:
    (fault,) = faults_of("")
    assert fault.startswith("camera: missing; allowed: one table or more")
    (fault,) = faults_of("[camera]")
    assert "one table or more" in fault
    (fault,) = faults_of("[camera.main]")
    assert fault.startswith("camera.main.source: missing; allowed: picamera:0")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("device.id", "porch\n"),
        ("device.id", "a" * 64),
        ("device.id", ""),
        ("model.device", "usb:0\n"),
        ("model.device", "usb:\u0663"),
        ("mqtt.base", "edge/#"),
        ("mqtt.base", ""),
        ("mqtt.discovery_prefix", "home+assistant"),
        ("model.name", ""),
        ("model.name", "a\0b"),
        ("mqtt.ca_file", "\0"),
    ],
)
def test_text_that_does_not_fit(line: str, value: str) -> None:
    faults = faults_of(f"{line} = {json.dumps(value)}\n{MINIMAL}")
    assert [fault.split(": ")[0] for fault in faults] == [line]


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "mqtt://",
        "mqtt://h:0",
        "mqtt://h:99999",
        "mqtt://h/path",
        "mqtt://[::1",
        "h:1883",
    ],
)
def test_broker_addresses_that_are_none(url: str) -> None:
    assert faults_of(f'mqtt.url = "{url}"\n{MINIMAL}')


@pytest.mark.parametrize("url", ["mqtt://h", "mqtts://h:8883", "mqtt://[::1]:1883", "mqtt://h/"])
def test_broker_addresses(url: str) -> None:
    assert config.parse(f'mqtt.url = "{url}"\n{MINIMAL}', "test.toml").mqtt.url == url


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    faults = faults_of(f'mqtt.url = "mqtt://me:secret@h"\n{MINIMAL}')
    assert "password_file" in faults[0]
    assert "secret" not in "".join(faults)
    faults = faults_of(f'mqtt.url = "http://me:secret@h"\n{MINIMAL}')
    assert "secret" not in "".join(faults)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    lines = f'mqtt.url = "mqtt://h"\nmqtt.cert_file = "{file}"\nmqtt.password_file = "{file}"\n'
    faults = faults_of(lines + MINIMAL)
    assert any("only one is set" in fault for fault in faults)
    assert any("does not encrypt" in fault for fault in faults)
    assert any("without mqtt.username" in fault for fault in faults)


@pytest.mark.parametrize(("mode", "is_fine"), [(0o600, True), (0o640, True), (0o604, False)])
def test_a_password_that_others_can_read_is_refused(
    tmp_path: Path, mode: int, is_fine: bool
) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(mode)
    text = f'mqtt.url = "mqtt://h"\nmqtt.username = "me"\nmqtt.password_file = "{file}"\n{MINIMAL}'
    if is_fine:
        assert config.parse(text, "test.toml").mqtt.password_file == str(file)
        assert read_password(str(file)) == "secret"
    else:
        (fault,) = faults_of(text)
        assert f"chmod o= {file}" in fault


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (fault,) = faults_of(f'model.labels = "{tmp_path / "none"}"\n{MINIMAL}')
    assert "no such file" in fault
    (fault,) = faults_of(f'mqtt.ca_file = "{tmp_path}"\n{MINIMAL}')
    assert "a directory" in fault


def test_the_password_of_a_systemd_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert read_password("") == ""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_password("") == ""
    (tmp_path / "mqtt-password").write_text("from systemd")
    assert read_password("") == "from systemd"
    (tmp_path / "mqtt-password").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_password("")


def test_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigError, match="No such file"):
        config.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(path)
    path.write_text("[camera.main")
    with pytest.raises(ConfigError, match="not valid TOML: Expected"):
        config.load(path)
    path.write_text(MINIMAL)
    assert config.load(path).camera.keys() == {"main"}


def test_shown_is_what_is_in_force(tmp_path: Path) -> None:
    path = "/" + "long/" * 40
    odd = 'a "quoted" \\ name\n\x7f \u00e9'
    text = f"device.area = {json.dumps(odd)}\nmodel.name = {json.dumps(path)}\n{MINIMAL}"
    found = config.parse(text, "test.toml")
    assert config.parse(config.show(found), "shown.toml") == found


def test_shown_without_secrets() -> None:
    text = '[camera.gate]\nsource = "rtsp://me:secret@cam:554/path?token=hidden"\n'
    text += '[device]\narea = "c"\n[mqtt]\nurl = "mqtt://broker"\nusername = "d:e@f"\n'
    shown = config.show(config.parse(text, "test.toml"))
    assert "secret" not in shown
    assert "hidden" not in shown
    assert 'username = "d:e@f"' in shown
    assert 'url = "mqtt://broker"' in shown


def test_the_schema_is_one_and_takes_what_we_take() -> None:
    schema: dict[str, Any] = config.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    text = demo.configuration(1883)
    config.parse(text, "demo")
    assert list(validator.iter_errors(tomllib.loads(text))) == []
    for wrong in ('[device]\nid = "A"', "[camera.main]\nfps = -1", "[nonsense]"):
        assert list(validator.iter_errors(tomllib.loads(wrong)))


def test_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(MINIMAL)
    check = edge_app("config", "check", "--config", str(path))
    assert (check.returncode, check.stdout, check.stderr) == (0, f"{path}: fine\n", "")
    path.write_text(MINIMAL + "fsp = 3\n[stats]\ninterval_s = 0\n")
    check = edge_app("config", "check", "--config", str(path))
    assert (check.returncode, check.stdout) == (78, "")
    assert "camera.main.fsp: unknown key (did you mean fps?)" in check.stderr
    assert "stats.interval_s: found 0; allowed: a number, at least 0.5" in check.stderr
    assert "hint: " in check.stderr
    assert "Traceback" not in check.stderr


def test_run_with_a_bad_configuration(tmp_path: Path) -> None:
    run = edge_app("run", "--config", os.fspath(tmp_path / "absent.toml"))
    assert (run.returncode, run.stdout) == (78, "")
    assert "absent.toml: cannot be read: No such file" in run.stderr
