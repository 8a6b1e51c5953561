"""What the whole appliance leaves on a broker for Home Assistant, and how it goes away."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from paho.mqtt import publish

from edge_app import cli
from edge_app.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, EdgeAppError
from edge_app.publish.clear import clear_retained
from edge_app.publish.link import Broker
from tests.brokers import Mosquitto, mosquitto_running, password_options
from tests.integration.test_appliance import appliance, ear_at, finish, write_config

ANNOUNCED = "homeassistant/device/under-test/config"
LEFT = [ANNOUNCED, *(f"edge/under-test/{kind}" for kind in ("info", "stats", "status"))]


def configure(folder: Path, port: int, **more: str) -> Path:
    """Write a configuration of an appliance that ends; its last report is kept for a minute."""
    path = write_config(folder, port=port, camera="loop = false", **more)
    path.write_text(path.read_text().replace("interval_s = 0.5", "interval_s = 20"))
    return path


def run_once(config: Path) -> None:
    """Let the appliance show every sample photo, and end."""
    with appliance(config) as process:
        code, _, err = finish(process)
    assert code == 0, err


def held(port: int) -> dict[str, bytes]:
    """Take what is retained of the device off the broker."""
    return clear_retained(Broker("127.0.0.1", port, "test"), LEFT)


def test_it_is_announced_with_what_it_is(tmp_path: Path, mosquitto: Mosquitto) -> None:
    run_once(configure(tmp_path, mosquitto.port))
    left = held(mosquitto.port)
    assert set(left) == set(LEFT)
    announced = json.loads(left[ANNOUNCED])
    assert announced["device"]["name"] == "under-test"
    info = json.loads(left["edge/under-test/info"])
    # What the entities for settings pick from it.
    assert {"paused", "threshold", "performance"} <= info["settings"].keys()


def test_who_has_just_come_is_told(tmp_path: Path, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, mode="changes", camera="fps = 20")
    with ear_at(mosquitto.port, "#") as ear, appliance(config) as process:
        ear.hear_until(lambda ear: ear.results())
        ear.heard.clear()
        publish.single("homeassistant/status", b"online", port=mosquitto.port)
        ear.hear_until(lambda ear: any(topic == ANNOUNCED for topic, _ in ear.heard))
        process.send_signal(signal.SIGTERM)
        finish(process)


def test_an_emptied_prefix_takes_the_announcement_back(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    spool = str(tmp_path / "spool.db")
    config = configure(tmp_path, mosquitto.port, spool=spool)
    run_once(config)
    text = config.read_text()
    config.write_text(text.replace("[mqtt]", '[mqtt]\ndiscovery_prefix = ""'))
    run_once(config)
    assert set(held(mosquitto.port)) == {*LEFT} - {ANNOUNCED}


def test_forget_leaves_nothing(
    tmp_path: Path, mosquitto: Mosquitto, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path, mosquitto.port)
    run_once(config)
    assert cli.main(["run", "--forget", "--config", str(config)]) == 0
    said = capfd.readouterr()
    assert said.out.splitlines() == [f"forgotten: {topic}" for topic in LEFT]
    assert said.err == ""
    assert cli.main(["run", "--forget", "--config", str(config)]) == 0
    assert "nothing of under-test is left" in capfd.readouterr().out
    assert held(mosquitto.port) == {}


def test_forget_also_finds_what_earlier_configurations_announced(
    tmp_path: Path, mosquitto: Mosquitto, capfd: pytest.CaptureFixture[str]
) -> None:
    spool = str(tmp_path / "spool.db")
    config = configure(tmp_path, mosquitto.port, spool=spool)
    old = 'discovery_prefix = "elsewhere"'
    text = config.read_text()
    config.write_text(text.replace("[mqtt]", f"[mqtt]\n{old}"))
    run_once(config)
    config.write_text(text)
    assert cli.main(["run", "--forget", "--config", str(config)]) == 0
    assert "elsewhere/device/under-test/config" in capfd.readouterr().out
    assert (tmp_path / "spool.db.announced").read_text() == ""


def test_a_second_appliance_on_the_same_files_is_refused(
    tmp_path: Path, mosquitto: Mosquitto, capfd: pytest.CaptureFixture[str]
) -> None:
    spool = tmp_path / "spool.db"
    config = write_config(tmp_path, port=mosquitto.port, spool=str(spool))
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace("under-test", "other"))
    with ear_at(mosquitto.port, "#") as ear, appliance(config) as process:
        ear.hear_until(lambda ear: any(topic == ANNOUNCED for topic, _ in ear.heard))
        for second in (config, other):
            with appliance(second) as refused:
                code, _, err = finish(refused)
            assert code == EXIT_UNAVAILABLE
            assert f"another edge-app (pid {process.pid}) uses {spool}" in err
            assert "systemctl stop edge-app" in err
        # To forget another device does not take this one's announcement with it.
        assert cli.main(["run", "--forget", "--config", str(other)]) == 0
        so_far = len(ear.results())
        ear.hear_until(lambda ear: len(ear.results()) > so_far + 2)
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0
    assert "left to it" in capfd.readouterr().err
    assert [topic for topic, payload in ear.heard if topic == ANNOUNCED and not payload] == []
    seqs = [result["seq"] for result in ear.results()]
    assert seqs == list(range(1, len(seqs) + 1))


def test_without_the_lock_announcements_of_others_are_left_alone(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    spool = tmp_path / "spool.db"
    (tmp_path / "spool.db.lock").symlink_to("nowhere")  # as on a file system without locks
    listed = tmp_path / "spool.db.announced"
    listed.write_text("homeassistant/device/other/config\n")
    with appliance(configure(tmp_path, mosquitto.port, spool=str(spool))) as process:
        code, _, err = finish(process)
    assert code == 0
    assert "taking back" not in err
    assert listed.read_text() == "homeassistant/device/other/config\n"


def test_a_state_folder_that_is_not_there_is_not_made(tmp_path: Path, mosquitto: Mosquitto) -> None:
    spool = str(tmp_path / "not" / "mounted" / "spool.db")
    run_once(configure(tmp_path, mosquitto.port, spool=spool))
    assert set(held(mosquitto.port)) == set(LEFT)
    assert not (tmp_path / "not").exists()


def test_a_file_of_something_else_is_refused_as_a_spool(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    passwords = tmp_path / "passwd"
    passwords.write_text("root:x:0:0\n")
    with appliance(configure(tmp_path, mosquitto.port, spool=str(passwords))) as process:
        code, _, err = finish(process)
    assert code == EXIT_CONFIG
    assert f'spool.path: found "{passwords}": a file of something else' in err
    assert passwords.read_text() == "root:x:0:0\n"


def test_forget_says_when_the_device_seems_to_run(
    tmp_path: Path, mosquitto: Mosquitto, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, port=mosquitto.port)
    with ear_at(mosquitto.port) as ear, appliance(config) as process:
        ear.hear_until(lambda ear: ear.payloads("status") == [b"online"])
        assert cli.main(["run", "--forget", "--config", str(config)]) == 0
        process.send_signal(signal.SIGTERM)
        finish(process)
    assert "stop it and do this again" in capfd.readouterr().err


def test_forget_needs_a_broker(
    tmp_path: Path, mosquitto: Mosquitto, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--forget", "--config", str(write_config(tmp_path, port=None))]) != 0
    assert "mqtt.url is empty" in capfd.readouterr().err
    mosquitto.kill()
    config = write_config(tmp_path, port=mosquitto.port)
    assert cli.main(["run", "--forget", "--config", str(config)]) != 0
    assert "is it running" in capfd.readouterr().err


def test_a_broker_that_does_not_let_us_in_says_so(tmp_path: Path) -> None:
    with mosquitto_running(tmp_path, password_options(tmp_path, "me", "right")) as mosquitto:
        stranger = Broker("127.0.0.1", mosquitto.port, "test", username="me")
        with pytest.raises(EdgeAppError, match="Not authorized"):
            clear_retained(stranger, LEFT)
