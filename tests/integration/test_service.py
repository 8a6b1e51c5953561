"""The appliance under a supervisor: what it tells systemd, on a real socket, as a real process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest
import trustme
from paho.mqtt.publish import single

from tests.brokers import Mosquitto, mosquitto_running
from tests.integration.test_appliance import (
    PATIENCE_S,
    PHOTOS,
    Ear,
    ear_at,
    finish,
    write_config,
)
from tests.integration.test_mqtt_tls import write_server


class Supervisor:
    """systemd's end of the notify socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def next(self, timeout_s: float = PATIENCE_S) -> dict[str, str]:
        """Return the next datagram; raises TimeoutError when none comes."""
        self._socket.settimeout(timeout_s)
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def wait_for(self, key: str, value: str = "") -> dict[str, str]:
        """Return the next datagram with `key`, and `value` somewhere in it."""
        while key not in (said := self.next()) or value not in said[key]:
            pass
        return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def supervised(
    config: Path,
    supervisor: Supervisor,
    *program: str,
    watchdog_s: float = 0.4,
    **environment: str,
) -> Iterator[subprocess.Popen[str]]:
    program = program or ("edge_app",)
    process = subprocess.Popen(
        [sys.executable, "-m", *program, "run", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"NOTIFY_SOCKET": str(supervisor.path), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ready_follows_the_first_frame_and_inference(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    os.mkfifo(folder / "0.jpg")  # the camera has no frame until somebody writes one
    config = write_config(tmp_path, port=None, source=f"images:{folder}", camera="fps = 5")
    with supervised(config, supervisor) as process, writing_end(folder / "0.jpg", process) as pipe:
        with pytest.raises(BlockingIOError):  # all is open, no frame has come
            supervisor.next(timeout_s=0)
        pipe.write(PHOTOS[0].read_bytes())
        pipe.close()
        said = supervisor.next()
    assert said["READY"] == "1"
    assert said["STATUS"].startswith("cpu; ")


@contextlib.contextmanager
def writing_end(fifo: Path, process: subprocess.Popen[str]) -> Iterator[BinaryIO]:
    """Open a fifo to write to, as soon as the process reads from it."""
    while process.poll() is None:
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.02)
        else:
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "wb") as pipe:
                yield pipe
            return
    raise AssertionError(f"it ended with {process.returncode}")


def test_status_shows_pace_and_broker(
    tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto
) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
    with supervised(config, supervisor) as process:
        status = supervisor.wait_for("STATUS", " p95 ")["STATUS"]
        assert status.startswith("cpu; ")
        assert " fps, p95 " in status
        assert "broker: connected" in status
        mosquitto.kill()
        supervisor.wait_for("STATUS", "messages wait")
        process.send_signal(signal.SIGTERM)
        assert supervisor.wait_for("STOPPING")["STOPPING"] == "1"
        code, _, err = finish(process)
    assert code == 0, err


def test_the_watchdog_is_petted_without_a_broker(tmp_path: Path, supervisor: Supervisor) -> None:
    config = write_config(tmp_path, port=1, camera="fps = 20")
    with supervised(config, supervisor):
        supervisor.wait_for("READY")
        for _ in range(5):
            supervisor.wait_for("WATCHDOG")


def test_an_engine_that_hangs_is_left_to_the_watchdog(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    config = write_config(tmp_path, port=None, camera="fps = 20", source=still(tmp_path))
    flag = tmp_path / "hang"
    with supervised(config, supervisor, "tests.hanging_engine", str(flag)) as process:
        supervisor.wait_for("STATUS", " p95 ")
        flag.touch()
        while not flag.with_suffix(".hangs").exists():
            supervisor.next()
        for _ in range(2):  # the first may tell of a time before
            supervisor.wait_for("STATUS", "cpu; 0.0 fps")
        for _ in range(6):  # the loop itself turns on, for seven times the watchdog's interval
            assert supervisor.next().keys() == {"STATUS"}
        assert process.poll() is None


def test_who_pauses_is_alive(tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
    with supervised(config, supervisor):
        supervisor.wait_for("STATUS", "broker: connected")
        single("edge-cmd/under-test/pause", "{}", qos=1, port=mosquitto.port)
        supervisor.wait_for("STATUS", "cpu; 0.0 fps")
        for _ in range(3):
            supervisor.wait_for("WATCHDOG")


def test_a_slow_camera_is_alive(tmp_path: Path, supervisor: Supervisor) -> None:
    config = write_config(tmp_path, port=None, camera="fps = 0.02", source=still(tmp_path))
    with supervised(config, supervisor):
        supervisor.wait_for("STATUS", "cpu; 0.0 fps")
        for _ in range(3):
            supervisor.wait_for("WATCHDOG")


def test_a_recording_that_waits_for_its_broker_is_alive(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    config = write_config(tmp_path, port=1, camera="loop = false\nfps = 0", source=still(tmp_path))
    with supervised(config, supervisor):
        supervisor.wait_for("STATUS", "0.0 fps")  # its frames have been inferred
        for _ in range(3):
            supervisor.wait_for("WATCHDOG")


def test_a_reload_changes_what_can_be_changed(
    tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto
) -> None:
    def write(top_k: int) -> Path:
        return write_config(
            tmp_path,
            port=mosquitto.port,
            camera="fps = 20",
            tables=f"[model]\ntop_k = {top_k}\nthreshold = 0",
        )

    config = write(3)
    with ear_at(mosquitto.port) as ear, supervised(config, supervisor) as process:
        ear.hear_until(lambda ear: any(len(result["labels"]) == 3 for result in ear.results()))
        write(1)
        process.send_signal(signal.SIGHUP)
        supervisor.wait_for("RELOADING")
        assert "changed: model.top_k" in supervisor.wait_for("READY")["STATUS"]
        ear.hear_until(lambda ear: len(ear.results()[-1]["labels"]) == 1)
        ear.hear_until(lambda ear: "config_reloaded" in events(ear))
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err


def test_a_reload_restarts_what_cannot_be_changed(
    tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto
) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
    with ear_at(mosquitto.port) as ear, supervised(config, supervisor) as process:
        supervisor.wait_for("STATUS", "broker: connected")
        write_config(tmp_path, port=mosquitto.port, camera="fps = 10")
        process.send_signal(signal.SIGHUP)
        assert "restarting" in supervisor.wait_for("STATUS", "camera.main.fps")["STATUS"]
        supervisor.wait_for("STOPPING")
        code, _, err = finish(process)
        ear.hear_until(lambda ear: ear.payloads("status")[-1:] == [b"offline"])
    assert code == 0, err  # Restart=always starts it again
    assert "config_reloaded" in events(ear)


@pytest.mark.parametrize(
    ("table", "fault"),
    [("[model]\ntop_k = 0", "model.top_k"), ("[model]\nname = 'nonesuch'", "nonesuch")],
)
def test_a_reload_of_a_bad_configuration_is_refused(
    tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto, table: str, fault: str
) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
    with ear_at(mosquitto.port) as ear, supervised(config, supervisor) as process:
        supervisor.wait_for("STATUS", "broker: connected")
        write_config(tmp_path, port=mosquitto.port, camera="fps = 20", tables=table)
        process.send_signal(signal.SIGHUP)
        supervisor.wait_for("RELOADING")
        status = supervisor.wait_for("READY")["STATUS"]
        assert "the old one stays" in status
        assert fault in status
        ear.hear_until(lambda ear: "config_refused" in events(ear))
        supervisor.wait_for("STATUS", " p95 ")  # it works on
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert (code, fault in err) == (0, True)


def test_certificates_come_as_credentials(tmp_path: Path, supervisor: Supervisor) -> None:
    authority = trustme.CA()
    options = write_server(tmp_path, authority, "localhost")
    options += [f"cafile {tmp_path / 'ca.pem'}", "require_certificate true"]
    device = authority.issue_cert("under-test")
    folder = tmp_path / "credentials"
    folder.mkdir()
    authority.cert_pem.write_to_path(str(folder / "mqtt-ca"))
    device.cert_chain_pems[0].write_to_path(str(folder / "mqtt-cert"))
    device.private_key_pem.write_to_path(str(folder / "mqtt-key"))
    (folder / "mqtt-password").write_text("\n")  # the unit's stand-in for none
    with mosquitto_running(tmp_path, options) as mosquitto:
        config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
        secure = config.read_text().replace("mqtt://127.0.0.1", "mqtts://localhost")
        config.write_text(secure)
        with supervised(config, supervisor, CREDENTIALS_DIRECTORY=str(folder)):
            supervisor.wait_for("STATUS", "broker: connected")


def still(folder: Path) -> str:
    """Return a camera of one photo."""
    photos = folder / "photos"
    photos.mkdir()
    shutil.copy(PHOTOS[0], photos)
    return f"images:{photos}"


def events(ear: Ear) -> list[str]:
    return [json.loads(payload)["event"] for payload in ear.payloads("event")]


def test_nothing_listens(tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
    with supervised(config, supervisor) as process:
        supervisor.wait_for("STATUS", "broker: connected")
        found = psutil.Process(process.pid).net_connections(kind="inet")
    assert [each.status for each in found] == [psutil.CONN_ESTABLISHED]
