"""The appliance under a supervisor: what it tells systemd, on a real socket, as a real process."""

from __future__ import annotations

import contextlib
import os
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

from tests.brokers import Mosquitto
from tests.integration.test_appliance import PATIENCE_S, PHOTOS, finish, write_config


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
        while value not in (said := self.next()).get(key, "\0"):
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
    config: Path, supervisor: Supervisor, *, watchdog_s: float = 0.4
) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "NOTIFY_SOCKET": str(supervisor.path),
        "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_app", "run", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
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
        assert "broker: 1 connection" in status
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


def test_nothing_listens(tmp_path: Path, supervisor: Supervisor, mosquitto: Mosquitto) -> None:
    config = write_config(tmp_path, port=mosquitto.port, camera="fps = 20")
    with supervised(config, supervisor) as process:
        supervisor.wait_for("STATUS", "broker: 1 connection")
        found = psutil.Process(process.pid).net_connections(kind="inet")
    assert [each.status for each in found] == [psutil.CONN_ESTABLISHED]
