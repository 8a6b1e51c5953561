"""A real Home Assistant in a process of its own, used as its web page uses it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from websockets.sync.client import ClientConnection, connect

from edge_app.tools.processes import free_port

START_S = 120.0
PATIENCE_S = 180.0  # a busy machine's; the sensors ask again after 30 s what timed out
STOP_S = 60.0

# It asks for Python 3.13.2; on 3.13.0 it runs as well, but will not start by itself.
_START = """
import sys
from homeassistant import __main__ as home_assistant
home_assistant.validate_python = lambda: None
sys.exit(home_assistant.main())
"""
_CONFIGURATION = """
homeassistant: {{name: test, latitude: 52.5, longitude: 13.4, elevation: 0, time_zone: UTC,
  unit_system: metric, country: DE}}
http: {{server_host: 127.0.0.1, server_port: {port}}}
logger: {{default: warning, logs: {{homeassistant.components.mqtt: info}}}}
api:
config:
websocket_api:
"""

Record = dict[str, Any]
Value = TypeVar("Value")


class HomeAssistant:
    """One installation in `folder`; what it knows outlives a `stop` and a `start`."""

    def __init__(self, python: Path, folder: Path) -> None:
        """Prepare. `python`: of the virtual environment Home Assistant is installed in."""
        self._python = python
        self._folder = folder
        self.port = free_port()
        self.token = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: ClientConnection | None = None
        self._asked = 0
        (folder / "configuration.yaml").write_text(_CONFIGURATION.format(port=self.port))

    def start(self) -> None:
        """Start it, and return once its pages are served and we are signed in."""
        # Without --skip-pip it would install what its integrations ask for.
        command: list[str | Path] = [self._python, "-c", _START, "-c", self._folder, "--skip-pip"]
        with (self._folder / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        until(self._is_up, START_S)
        if not self.token:
            self.token = self._sign_up()
        self._socket = connect(
            f"ws://127.0.0.1:{self.port}/api/websocket", max_size=None, proxy=None
        )
        assert json.loads(self._socket.recv())["type"] == "auth_required"
        self._socket.send(json.dumps({"type": "auth", "access_token": self.token}))
        answer = json.loads(self._socket.recv())
        assert answer["type"] == "auth_ok", answer
        until(lambda: self.ask("get_config")["state"] == "RUNNING", START_S)

    def stop(self) -> None:
        """End it as its service manager would."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None

    def use_broker(self, port: int) -> None:
        """Set up the MQTT integration, as one does in its dialogue."""
        flows = "/api/config/config_entries/flow"
        flow = self._post(flows, {"handler": "mqtt"})
        entry = self._post(f"{flows}/{flow['flow_id']}", {"broker": "127.0.0.1", "port": port})
        assert entry["type"] == "create_entry", entry

    def ask(self, kind: str, **arguments: object) -> Any:
        """Send one command over the web socket and return its result."""
        assert self._socket is not None
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "type": kind, **arguments}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == self._asked:
                assert answer["success"], (kind, arguments, answer)
                return answer["result"]

    def states(self) -> dict[str, Record]:
        """Return the state of every entity, with its attributes, by entity id."""
        return {state["entity_id"]: state for state in self.ask("get_states")}

    def state(self, entity: str) -> str:
        """Return an entity's state; empty when there is none."""
        found = self.states().get(entity)
        return str(found["state"]) if found else ""

    def registered(self) -> dict[str, Record]:
        """Return what the registry knows of every MQTT entity, by entity id."""
        entries = self.ask("config/entity_registry/list")
        return {entry["entity_id"]: entry for entry in entries if entry["platform"] == "mqtt"}

    def enable(self, entity: str) -> None:
        """Enable an entity that is disabled; Home Assistant takes half a minute to do it."""
        self.ask("config/entity_registry/update", entity_id=entity, disabled_by=None)

    def devices(self) -> list[Record]:
        """Return the devices that MQTT brought."""
        devices: list[Record] = self.ask("config/device_registry/list")
        return [d for d in devices if any(kind == "mqtt" for kind, _ in d["identifiers"])]

    def act(self, service: str, entity: str, **data: object) -> None:
        """Call a service, such as `button.press`, on one entity."""
        domain, name = service.split(".")
        target = {"entity_id": entity}
        self.ask("call_service", domain=domain, service=name, target=target, service_data=data)

    def download(self, path: str) -> bytes:
        """Return what a page of its own would show from `path`."""
        return self._fetch("GET", path, None, {})

    def complaints(self) -> list[str]:
        """Return what it has logged about MQTT since its first start, from warnings on."""
        lines = (self._folder / "output.txt").read_text().splitlines()
        return [
            line
            for line in lines
            if "homeassistant.components.mqtt" in line and ("WARNING" in line or "ERROR" in line)
        ]

    def _sign_up(self) -> str:
        client = f"http://127.0.0.1:{self.port}/"
        user = {"name": "test", "username": "test", "password": "test", "language": "en"}
        code = self._post("/api/onboarding/users", {"client_id": client, **user})["auth_code"]
        form = {"grant_type": "authorization_code", "client_id": client, "code": code}
        answer = self._fetch(
            "POST",
            "/auth/token",
            urllib.parse.urlencode(form),
            {"Content-Type": "application/x-www-form-urlencoded"},
        )
        return str(json.loads(answer)["access_token"])

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "output.txt").read_text()[-3000:]
        try:
            self.download("/manifest.json")
        except OSError:
            return False
        return True

    def _post(self, path: str, body: Record) -> Record:
        answer = self._fetch("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        found: Record = json.loads(answer)
        return found

    def _fetch(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> bytes:
        signed = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, {**headers, **signed})
            answer = connection.getresponse()
            content = answer.read()
        assert answer.status == HTTPStatus.OK, (path, answer.status, content)
        return content


@contextlib.contextmanager
def home_assistant_running(python: Path, folder: Path) -> Iterator[HomeAssistant]:
    """Run one that knows nothing yet while the block lasts."""
    home = HomeAssistant(python, folder)
    try:
        home.start()
        yield home
    finally:
        home.stop()


def until(done: Callable[[], Value], patience_s: float = PATIENCE_S) -> Value:
    """Return what `done` returns once that is true; fail when it does not become true."""
    end_s = time.monotonic() + patience_s
    while not (found := done()):
        assert time.monotonic() < end_s, f"waited {patience_s:g} s for {done}"
        time.sleep(0.1)  # nothing to wait on: it happens in another process
    return found
