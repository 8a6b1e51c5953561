"""Real brokers on loopback: mosquitto, and amqtt, which knows no MQTT 5."""

from __future__ import annotations

import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_app.tools.processes import free_port, running, wait_until_open

_NO_LIMIT = "max_queued_messages 0"  # it drops messages to a subscriber that lags by more


class Mosquitto:
    """A mosquitto of its own port and folder; it remembers nothing from one start to the next."""

    def __init__(self, folder: Path, options: Sequence[str] = ("allow_anonymous true",)) -> None:
        """Prepare. `options` are lines for its configuration, after the listener's."""
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            # Root's mosquitto would become a user that cannot read the test's folder.
            "\n".join(["user root", f"listener {self.port} 127.0.0.1", _NO_LIMIT, *options, ""])
        )
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return once it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), "-c", self._config], stdout=log, stderr=subprocess.STDOUT
            )
        wait_until_open(self.port, self._process)

    def kill(self) -> None:
        """End it as a crash would: no goodbye to anyone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it where it is; connections stay, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """Return everything it has logged so far."""
        return self._log.read_text()


@contextmanager
def mosquitto_running(
    folder: Path, options: Sequence[str] = ("allow_anonymous true",)
) -> Iterator[Mosquitto]:
    """Run a mosquitto while the block lasts."""
    broker = Mosquitto(folder, options)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


def password_options(folder: Path, username: str, password: str) -> list[str]:
    """Return the options of a mosquitto that lets in one user only."""
    file = folder / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-c", "-b", file, username, password], check=True, capture_output=True
    )
    return ["allow_anonymous false", f"password_file {file}"]


@contextmanager
def amqtt_running() -> Iterator[int]:
    """Run the demo's broker, which refuses MQTT 5; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "edge_app.tools.demo_broker", str(port)]
    with running(command) as process:
        wait_until_open(port, process)
        yield port


@contextmanager
def relaying(port: int, to_port: int) -> Iterator[None]:
    """Pass connections to `port` on to `to_port` while the block lasts; then cut them."""
    cut = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", to_port)) as beyond,
            ):
                other = {self.request: beyond, beyond: self.request}
                while not cut.is_set():
                    for side in select.select(list(other), [], [], 0.01)[0]:
                        data = side.recv(65_536)
                        if not data:
                            return
                        other[side].sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            cut.set()
            server.shutdown()
            thread.join()


def _program() -> str:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/sbin")
    assert found, "mosquitto is not installed; tests/system-packages installs it"
    return found
