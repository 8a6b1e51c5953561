"""The configuration file: what is allowed, and what is said about what is not."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from edge_app import config
from edge_app.errors import ConfigError
from edge_app.publish.link import read_password
from edge_app.tools import demo

MINIMAL = '[camera.main]\nsource = "picamera:0"\n'


READ_AS = """
import os, sys
from pathlib import Path
from edge_app import config  # while its own files can be read
from edge_app.errors import ConfigError
path = Path(sys.argv[1])
os.chdir(path.parent)
os.setuid(int(sys.argv[2]))
try:
    config.load(Path(path.name))
except ConfigError as error:
    print(error, "|", error.hint)
"""


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
        ("mqtt.base", "$SYS"),
        ("mqtt.base", "edge/"),
        ("mqtt.base", "/edge"),
        ("mqtt.base", "a//b"),
        ("mqtt.base", "a\tb"),
        ("mqtt.base", "edge\n"),
        ("mqtt.discovery_prefix", "homeassistant/"),
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
    assert any(fault.startswith("mqtt.key_file: empty, while mqtt.cert_file") for fault in faults)
    assert any("does not encrypt" in fault for fault in faults)
    assert any(fault.startswith("mqtt.username: empty, while") for fault in faults)


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


@pytest.mark.parametrize(
    ("base", "prefix", "is_fine"),
    [
        ("edge", "homeassistant", True),
        ("edge", "edges", True),
        ("site/edge", "site/ha", True),
        ("homeassistant", "", True),
        ("homeassistant", "homeassistant", False),
        ("homeassistant/edge", "homeassistant", False),
        ("edge", "edge/ha", False),
        ("edge", "edge-cmd", False),
    ],
)
def test_states_and_announcements_have_trees_of_their_own(
    base: str, prefix: str, is_fine: bool
) -> None:
    text = f'mqtt.url = "mqtt://h"\nmqtt.base = "{base}"\nmqtt.discovery_prefix = "{prefix}"\n'
    if is_fine:
        assert config.parse(text + MINIMAL, "test.toml").mqtt.base == base
    else:
        (fault,) = faults_of(text + MINIMAL)
        assert fault.startswith(f'mqtt.base: found "{base}", and mqtt.discovery_prefix "{prefix}"')


def test_a_fault_hides_no_other() -> None:
    text = 'mqtt.url = "http://h"\nmqtt.key_file = "/nowhere"\nmqtt.password_file = "/nowhere"\n'
    faults = faults_of(f'{text}model.labels = "/nowhere"\n[camera.main]\nsuorce = "picamera:0"')
    assert [fault.split(": ")[0] for fault in faults] == [
        "camera.main.suorce",
        "camera.main.source",
        "mqtt.url",
        "mqtt.cert_file",
        "mqtt.username",
        "model.labels",
        "mqtt.key_file",
        "mqtt.password_file",
    ]
    # Its file is set, and unreadable: that it is empty would be a second word about the same.
    (fault,) = faults_of(f'mqtt.url = "mqtts://h"\nmqtt.ca_file = "/nowhere"\n{MINIMAL}')
    assert "no such file" in fault


def test_what_is_said_of_a_source_ends_in_something_and_is_said_once() -> None:
    for source in ("images:", "foo", "picam:0", "picamera:front"):
        (fault,) = faults_of(f'[camera.main]\nsource = "{source}"')
        assert not fault.rstrip().endswith(";")
        assert fault.count("v4l2:/dev/video") <= 1


def test_a_camera_that_serves_one_alone_is_given_once() -> None:
    twice = '[camera.a]\nsource = "{0}"\n[camera.b]\nsource = "{0}"\n'
    (fault,) = faults_of(twice.format("v4l2:/dev/video0"))
    assert fault.startswith("camera.b.source: ")
    assert "which camera.a has" in fault
    config.parse(twice.format("rtsp://cam/stream"), "test.toml")


def test_certificates_and_keys_that_are_none(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued, other = authority.issue_cert("porch"), authority.issue_cert("attic")
    ca, cert, key, stranger, text, closed = (
        tmp_path / name for name in ("ca", "cert", "key", "stranger", "text", "closed")
    )
    authority.cert_pem.write_to_path(ca)
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(stranger)
    text.write_text("none\n")
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    closed.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )

    def faults(ca: Path, cert: Path, key: Path) -> list[str]:
        files = f'mqtt.ca_file = "{ca}"\nmqtt.cert_file = "{cert}"\nmqtt.key_file = "{key}"\n'
        try:
            config.parse(f'mqtt.url = "mqtts://h"\n{files}{MINIMAL}', "test.toml")
        except ConfigError as error:
            return list(error.faults)
        return []

    assert faults(ca, cert, key) == []
    none, empty = faults(text, key, key)
    assert none.startswith(f'mqtt.ca_file: found "{text}": no certificate is in it')
    assert empty.startswith(f'mqtt.cert_file: found "{key}": no certificate is in it')
    for wrong, said in (
        (stranger, "does not belong to"),
        (text, "no private key is in it"),
        (closed, "protected by a passphrase"),
    ):
        (fault,) = faults(ca, cert, wrong)
        assert fault.startswith(f'mqtt.key_file: found "{wrong}": ')
        assert said in fault


def test_a_password_file_without_a_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    text = f'mqtt.url = "mqtt://h"\nmqtt.username = "me"\nmqtt.password_file = "{file}"\n{MINIMAL}'
    for content, said in ((b"", "empty"), (b"\n", "empty"), (b"\xff", "not UTF-8")):
        file.write_bytes(content)
        (fault,) = faults_of(text)
        assert f'mqtt.password_file: found "{file}": {said}' in fault
    file.write_bytes(codecs.BOM_UTF8 + b"secret\r\n")
    config.parse(text, "test.toml")
    assert read_password(str(file)) == "secret"


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
    with pytest.raises(ConfigError, match="no such file") as caught:
        config.load(path)
    assert "put it there" in caught.value.hint
    with pytest.raises(ConfigError, match="a directory, not a file") as caught:
        config.load(tmp_path)
    assert caught.value.hint == "name a file in it"
    path.write_bytes(MINIMAL.encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-16, not UTF-8") as caught:
        config.load(path)
    assert "save it as UTF-8" in caught.value.hint
    path.write_bytes(b"# fine\n# caf\xe9\n" + MINIMAL.encode())
    with pytest.raises(ConfigError, match="not UTF-8: byte 0xe9 in line 2"):
        config.load(path)
    path.write_text("[camera.main")
    with pytest.raises(ConfigError, match="not valid TOML: Expected"):
        config.load(path)
    for signature in (b"", codecs.BOM_UTF8):
        path.write_bytes(signature + MINIMAL.encode())
        assert config.load(path).camera.keys() == {"main"}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.touch(mode=0o600)
    nobody = 65534
    done = subprocess.run(
        [sys.executable, "-c", READ_AS, os.fspath(path), str(nobody)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "permission denied | let this user read it" in done.stdout


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    done = edge_app("config", "check", "--config", "/dev/zero")
    assert done.returncode == 78
    assert "/dev/zero: cannot be read: more than 1000000 bytes" in done.stderr


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
    assert "absent.toml: cannot be read: no such file" in run.stderr
