"""What `edge-app doctor` finds: sound things pass, and each fault is told with its cure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_app.catalog import shipped_dir
from edge_app.config import CameraConfig, ModelConfig, Mqtt, Spool
from edge_app.engine.devices import EdgeTpu
from edge_app.engine.survey import Survey
from edge_app.errors import EXIT_CONFIG, EXIT_OK, EXIT_UNAVAILABLE
from edge_app.stats import Thermal, Throttled
from edge_app.tools import checkup, doctor
from edge_app.tools.processes import free_port
from tests.brokers import Mosquitto, mosquitto_running, password_options

SAMPLES = f"images:{shipped_dir() / 'samples'}"
CORAL = EdgeTpu("usb", "/sys/x", "/dev/bus/usb/002/003", speed_mbps=5000, ready=True, usable=True)
SOUND = Survey((CORAL,), "BuildLabel(x)", ("usb /sys/x",))
EDGETPU = ModelConfig(backend="edgetpu")
PAGE = 4096


def statuses(text: str) -> dict[str, str]:
    records = [json.loads(line) for line in text.splitlines()]
    return {record["name"]: record["status"] for record in records}


def write_config(folder: Path, *, port: int, source: str = SAMPLES) -> Path:
    path = folder / "config.toml"
    path.write_text(
        f'[device]\nid = "porch"\n[camera.main]\nsource = "{source}"\n'
        f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n[spool]\npath = "{folder}/spool.db"\n'
    )
    return path


def test_a_sound_appliance_has_nothing_failed(
    tmp_path: Path, mosquitto: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, port=mosquitto.port)
    assert doctor.run(path, as_json=True) == EXIT_OK
    found = statuses(capsys.readouterr().out)
    wanted = ("configuration", "model", "camera main", "broker", "spool")
    assert [found[name] for name in wanted] == ["ok"] * 5
    assert {"clock", "supply", "temperature", "service", "edge tpu", "power meter"} <= set(found)


def test_every_fault_is_found_not_just_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, port=free_port(), source=f"images:{tmp_path}/none")
    assert doctor.run(path, as_json=False) == EXIT_UNAVAILABLE
    text = capsys.readouterr().out
    assert text.count("FAILED") == 2
    assert "Connection refused" in text
    assert text.count("cure:") >= 2


def test_a_bad_configuration_leaves_the_machine_to_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[camera.main]\nsource = 'nothing'\nfsp = 3\n")
    assert doctor.run(path, as_json=True) == EXIT_CONFIG
    first, *others = capsys.readouterr().out.splitlines()
    assert "fsp" in json.loads(first)["evidence"]
    assert "clock" in statuses("\n".join(others))


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_app", "doctor", "--config", str(tmp_path / "none.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CONFIG
    assert "configuration" in done.stdout


def test_a_refused_password(tmp_path: Path) -> None:
    with mosquitto_running(tmp_path, password_options(tmp_path, "cam", "right")) as broker:
        secret = tmp_path / "secret"
        secret.write_text("wrong")
        mqtt = Mqtt(
            url=f"mqtt://127.0.0.1:{broker.port}", username="cam", password_file=str(secret)
        )
        refused = checkup.check_broker(mqtt, "porch")
        assert "ot authori" in refused.evidence
        assert "mqtt.password_file" in refused.cure
        secret.write_text("right")
        assert checkup.check_broker(mqtt, "porch").status == "ok"


@pytest.mark.parametrize(
    ("model", "survey", "page_bytes", "status", "text"),
    [
        (ModelConfig(backend="cpu"), SOUND, PAGE, "skipped", "cpu"),
        (ModelConfig(), Survey(), PAGE, "skipped", "none is attached"),
        (EDGETPU, Survey(problem="it is gone"), PAGE, "failed", "it is gone"),
        (ModelConfig(), Survey((CORAL,)), PAGE, "warning", "libedgetpu"),
        (EDGETPU, replace(SOUND, attached=(), listed=()), PAGE, "failed", "no Edge TPU"),
        (
            EDGETPU,
            replace(SOUND, attached=(replace(CORAL, usable=False),)),
            PAGE,
            "failed",
            "permission denied",
        ),
        (
            EDGETPU,
            replace(SOUND, attached=(replace(CORAL, bus="pci", speed_mbps=None),)),
            16384,
            "failed",
            "pages of 4096",
        ),
        (EDGETPU, SOUND, PAGE, "failed", "no file compiled"),
    ],
)
def test_what_is_in_an_edge_tpus_way(
    model: ModelConfig, survey: Survey, page_bytes: int, status: str, text: str
) -> None:
    found = checkup.check_edgetpu(model, survey, page_bytes)
    assert found.status == status
    assert text in f"{found.evidence} {found.cause}"
    assert status == "skipped" or found.cure


def test_a_slow_link_is_no_failure_but_told(tmp_path: Path) -> None:
    for file in ("m.tflite", "m_edgetpu.tflite", "labels.txt"):
        (tmp_path / file).write_bytes(b"a\n")
    model = ModelConfig(
        name=str(tmp_path / "m.tflite"), labels=str(tmp_path / "labels.txt"), backend="edgetpu"
    )
    assert checkup.check_edgetpu(model, SOUND, PAGE).status == "ok"
    slow = replace(SOUND, attached=(replace(CORAL, speed_mbps=480),))
    found = checkup.check_edgetpu(model, slow, PAGE)
    assert (found.status, "480 Mbit/s" in found.evidence) == ("warning", True)


def test_a_broken_model(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"nothing of the kind")
    (tmp_path / "labels.txt").write_text("a\n")
    model = ModelConfig(name=str(tmp_path / "m.tflite"), labels=str(tmp_path / "labels.txt"))
    assert checkup.check_model(model).status == "failed"


def test_a_device_in_use_is_left_to_the_appliance(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    for pid, words in {
        "7": b"/opt/edge-app/current/bin/edge-app\0run\0",
        "8": b"/opt/x/python\0/opt/edge-app/current/bin/edge-app\0run\0--config\0x\0",
        "9": b"edge-app\0doctor\0",
        "10": b"run\0",
    }.items():
        (proc / pid).mkdir(parents=True)
        (proc / pid / "cmdline").write_bytes(words)
    assert checkup.running_appliances(proc) == [7, 8]
    camera = CameraConfig(source="v4l2:/dev/video0")
    assert checkup.check_camera("main", camera, [7]).status == "skipped"
    assert checkup.check_camera("main", camera, []).status == "failed"


def test_the_spool() -> None:
    assert checkup.check_spool(Spool(path="")).status == "skipped"
    full = checkup.check_spool(Spool(path="/tmp/spool.db", max_mb=10**9))  # noqa: S108
    assert (full.status, "free some space" in full.cure) == ("warning", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_spool_out_of_reach() -> None:
    assert checkup.check_spool(Spool(path="/root/spool.db")).status == "failed"


def test_what_the_machine_says_of_itself() -> None:
    assert checkup.check_clock(None).status == "skipped"
    assert checkup.check_clock(True).status == "ok"
    assert checkup.check_clock(False).status == "warning"
    assert checkup.check_supply(Throttled()).status == "skipped"
    assert checkup.check_supply(Throttled((), (), ("under_voltage",))).status == "ok"
    assert checkup.check_supply(Throttled((), ("under_voltage",))).status == "warning"
    assert checkup.check_supply(Throttled(("under_voltage",))).status == "failed"
    assert checkup.check_heat(Thermal()).status == "skipped"
    assert checkup.check_heat(Thermal(soc=51.0)).status == "ok"
    assert checkup.check_heat(Thermal(soc=83.0)).status == "warning"
    assert checkup.check_power("none").status == "skipped"
    assert checkup.check_power("poe").status == "failed"
