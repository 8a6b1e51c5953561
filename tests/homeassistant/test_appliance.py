"""The whole appliance, with a stand-in Edge TPU and a Pi 5's firmware, in a real Home Assistant."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_app import cli
from edge_app.catalog import resolve, shipped_dir
from tests.brokers import Mosquitto
from tests.homeassistant.hass import HomeAssistant, until
from tests.integration.test_appliance import appliance, finish, write_config
from tests.standin.edgetpu import Device, device
from tests.standin.edgetpu.compile import compiled
from tests.unit.test_sensors_power import PMIC, firmware

# No value before somebody presses, or rests.
AT_FIRST_UNKNOWN = {
    "binary_sensor.under_test_self_test_result",
    "button.under_test_restart",
    "button.under_test_self_test",
    "button.under_test_take_snapshot",
    "image.under_test_snapshot",
}


@pytest.fixture
def tpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Give the appliance an Edge TPU, and a model that has been compiled for it."""
    cpu = resolve("mobilenet_v2_1.0_224").cpu
    assert cpu is not None
    (tmp_path / "own.tflite").write_bytes(cpu.read_bytes())
    (tmp_path / "own_edgetpu.tflite").write_bytes(compiled(cpu.read_bytes()))
    with device(tmp_path / "tpu", tmp_path / "own.tflite") as tpu:
        for name, value in tpu.environment.items():
            monkeypatch.setenv(name, value)
        yield tpu


@pytest.fixture
def config(
    tmp_path: Path, mosquitto: Mosquitto, tpu: Device, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Configure an appliance on a machine that answers like a Pi 5."""
    (tmp_path / "bin").mkdir()
    firmware(tmp_path / "bin", get_throttled="throttled=0x50000", pmic_read_adc=PMIC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    labels = shipped_dir() / "imagenet_labels.txt"
    # One picture, and no heartbeat: what is seen is said once, unless somebody new has come.
    (tmp_path / "photo").mkdir()
    shutil.copy(shipped_dir() / "samples" / "cat.jpg", tmp_path / "photo")
    path = write_config(
        tmp_path,
        port=mosquitto.port,
        source=f"images:{tmp_path / 'photo'}",
        camera="fps = 4",
        mode="changes",
        spool=str(tmp_path / "spool.db"),
        tables=f'[model]\nname = "{tmp_path / "own.tflite"}"\nlabels = "{labels}"\n',
    )
    path.write_text(path.read_text().replace("[publish]", "[publish]\nheartbeat_s = 0"))
    return path


@pytest.fixture
def running(config: Path) -> Iterator[subprocess.Popen[str]]:
    with appliance(config) as process:
        yield process


def without_value(home: HomeAssistant) -> set[str]:
    """Return the appliance's entities that Home Assistant has nothing to show for."""
    enabled = {id_ for id_, entry in home.registered().items() if not entry["disabled_by"]}
    states = home.states()
    return {
        id_
        for id_ in enabled
        if id_ not in states or states[id_]["state"] in ("unknown", "unavailable")
    }


def until_complete(home: HomeAssistant) -> None:
    """Return once everything there is has a value."""
    until(lambda: "sensor.under_test_power" in home.registered())
    until(lambda: without_value(home) <= AT_FIRST_UNKNOWN)


def test_it_appears_and_obeys(home: HomeAssistant, running: subprocess.Popen[str]) -> None:
    until_complete(home)
    states = home.states()
    assert states["sensor.under_test_power"]["attributes"]["source"] == "pmic-estimate"
    assert states["sensor.under_test_backend"]["state"] in ("cpu", "edgetpu")
    assert states["binary_sensor.under_test_under_voltage"]["state"] == "off"
    assert states["binary_sensor.under_test_throttled"]["attributes"]["since_boot"] == [
        "under_voltage",
        "throttled",
    ]
    assert float(states["sensor.under_test_energy"]["state"]) >= 0

    home.act("number.set_value", "number.under_test_threshold", value=0.99)
    until(lambda: home.state("number.under_test_threshold") == "0.99")
    until(lambda: home.state("sensor.under_test_label") == "nothing")
    home.act("number.set_value", "number.under_test_threshold", value=0.1)
    until(lambda: home.state("sensor.under_test_label") == "Egyptian cat")

    home.act("switch.turn_on", "switch.under_test_paused")
    until(lambda: home.state("switch.under_test_paused") == "on")
    until(lambda: home.state("sensor.under_test_label") == "unavailable")
    until(lambda: home.state("sensor.under_test_frame_rate") == "0.0")
    home.act("switch.turn_off", "switch.under_test_paused")
    until(lambda: home.state("sensor.under_test_label") == "Egyptian cat")
    until(lambda: float(home.state("sensor.under_test_frame_rate")) > 0)

    home.act("select.select_option", "select.under_test_performance", option="low")
    until(lambda: home.state("select.under_test_performance") == "low")

    home.act("button.press", "button.under_test_self_test")
    until(lambda: home.state("binary_sensor.under_test_self_test_result") == "off")

    home.act("button.press", "button.under_test_take_snapshot")
    until(lambda: home.state("image.under_test_snapshot") != "unknown")
    picture = home.states()["image.under_test_snapshot"]["attributes"]["entity_picture"]
    assert home.download(picture).startswith(b"\xff\xd8\xff")

    home.act("button.press", "button.under_test_restart")
    code, _, err = finish(running)
    assert code == 0, err
    until(lambda: home.state("binary_sensor.under_test_connection") == "off")
    until(lambda: home.state("sensor.under_test_frame_rate") == "unavailable")
    assert home.complaints() == []


def test_what_goes_is_shown(
    home: HomeAssistant, running: subprocess.Popen[str], tpu: Device
) -> None:
    until_complete(home)
    until(lambda: home.state("sensor.under_test_backend") == "edgetpu")
    assert home.state("binary_sensor.under_test_accelerator_problem") == "off"
    tpu.unplug()
    until(lambda: home.state("binary_sensor.under_test_accelerator_problem") == "on")
    until(lambda: home.state("sensor.under_test_backend") == "cpu")
    problem = home.states()["binary_sensor.under_test_accelerator_problem"]
    assert problem["attributes"]["cause"]

    running.kill()
    until(lambda: home.state("sensor.under_test_power") == "unavailable")
    assert home.state("binary_sensor.under_test_connection") == "off"


def test_it_survives_what_restarts(
    home: HomeAssistant, running: subprocess.Popen[str], mosquitto: Mosquitto
) -> None:
    until_complete(home)
    known = home.registered().keys()
    mosquitto.kill()  # it keeps nothing
    until(lambda: home.state("sensor.under_test_power") == "unavailable")
    mosquitto.start()
    until_complete(home)
    assert home.registered().keys() == known

    home.stop()
    home.start()
    until_complete(home)
    assert home.registered().keys() == known
    assert len(home.devices()) == 1


def test_removal_removes(home: HomeAssistant, config: Path) -> None:
    run_for_a_while(home, config)
    assert cli.main(["run", "--forget", "--config", str(config)]) == 0
    until(lambda: not home.registered() and not home.devices())

    run_for_a_while(home, config)
    config.write_text(config.read_text().replace("[mqtt]", '[mqtt]\ndiscovery_prefix = ""'))
    with appliance(config) as process:
        until(lambda: not home.registered() and not home.devices())
        process.send_signal(signal.SIGTERM)
        finish(process)
    home.stop()
    home.start()
    assert not home.registered()


def run_for_a_while(home: HomeAssistant, config: Path) -> None:
    with appliance(config) as process:
        until_complete(home)
        process.send_signal(signal.SIGTERM)
        finish(process)
