"""Who the broker lets in, what it lets them say, and what happens while it is away."""

from __future__ import annotations

import queue
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.appliance.conftest import Fleet
from tests.appliance.ear import mqtt_client
from tests.appliance.machine import messages_waiting

# paho leaves the socket of a failed handshake to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

_PATIENCE_S = 60.0
_OUTAGE_RESULTS = 5


def test_an_outage_of_the_broker_loses_nothing_and_restarts_nothing(fleet: Fleet) -> None:
    before = fleet.cam_1.unit()
    fleet.hub.run("systemctl stop mosquitto")
    try:
        fleet.cam_1.wait_for_unit(lambda unit: messages_waiting(unit) >= _OUTAGE_RESULTS)
    finally:
        mark = fleet.ear.mark()
        fleet.hub.run("systemctl start mosquitto")

    fleet.ear.wait_for("cam-1", "status", lambda it: it.payload == b"online", since=mark)
    for _ in range(2):  # what was kept, and then something new
        again = fleet.ear.mark()
        fleet.ear.wait_for("cam-1", "result", since=again)
    assert fleet.ear.unaccounted("cam-1") == []
    assert fleet.cam_1.unit()["NRestarts"] == before["NRestarts"]


def test_an_expired_certificate_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    _issue(fleet, tmp_path, "cam-1", "-startdate", "20200101000000Z", "-enddate", "20210101000000Z")

    assert "expired" in _refusal(fleet, tmp_path)


def test_a_certificate_is_refused_once_it_is_revoked(fleet: Fleet, tmp_path: Path) -> None:
    _issue(fleet, tmp_path, "stranger", "-days", "2")
    assert _refusal(fleet, tmp_path) == ""

    play = fleet.controller.play("revoke.yml", "-e", "name=stranger")

    assert play.returncode == 0, play.output
    assert "revoked" in _refusal(fleet, tmp_path)


def test_nobody_comes_without_a_certificate(fleet: Fleet) -> None:
    context = ssl.create_default_context(cafile=str(fleet.controller.authority / "ca.crt"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # see mqtt_client

    with (
        socket.create_connection(("127.0.0.1", fleet.broker_port), _PATIENCE_S) as link,
        pytest.raises(ssl.SSLError, match="handshake failure"),
    ):
        context.wrap_socket(link, server_hostname="127.0.0.1")
    assert "did not return a certificate" in fleet.hub.run("cat /var/log/mosquitto/mosquitto.log")


@pytest.mark.parametrize(
    "topic",
    [
        "edge/cam-2/result",
        "edge/cam-2/status",
        "edge-cmd/cam-1/pause",
        "edge-cmd/cam-2/pause",
        "homeassistant/device/cam-2/config",
    ],
)
def test_a_device_can_say_nothing_in_another_s_name_and_command_nobody(
    fleet: Fleet, tmp_path: Path, topic: str
) -> None:
    _steal_certificate(fleet, tmp_path)

    with _connected(fleet, tmp_path, "thief") as client:
        assert _answer(client, topic) == "Not authorized"
        assert _answer(client, "edge/cam-1/event") == "Success"


@pytest.mark.parametrize(
    "topic",
    ["edge/cam-1/result", "edge/observer/status", "homeassistant/device/observer/config"],
)
def test_a_person_can_say_nothing_in_a_device_s_name(fleet: Fleet, topic: str) -> None:
    with _connected(fleet, fleet.controller.certificates("observer"), "visitor") as client:
        assert _answer(client, topic) == "Not authorized"


def _answer(client: paho.Client, topic: str) -> str:
    """Publish an event; return what the broker says to it."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    client.on_publish = lambda _client, _data, _mid, reason, _properties: answers.put(str(reason))
    client.publish(topic, b'{"event":"own"}', qos=1)
    return answers.get(timeout=_PATIENCE_S)


def _steal_certificate(fleet: Fleet, folder: Path) -> None:
    for name in ("ca.crt", "client.crt", "client.key"):
        (folder / name).write_text(fleet.cam_1.run(f"cat /etc/edge-app/tls/{name}"))


def _issue(fleet: Fleet, folder: Path, name: str, *validity: str) -> None:
    """Have the fleet's own authority sign a certificate, with openssl as its role does."""
    key, request = folder / "client.key", folder / "client.csr"
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    _openssl("req", "-new", "-key", str(key), "-subj", f"/CN={name}", "-out", str(request))
    command = ["openssl", "ca", "-batch", "-notext", "-config", "openssl.cnf"]
    command += ["-extensions", "client", *validity, "-in", str(request)]
    command += ["-out", str(folder / "client.crt")]
    authority = fleet.controller.authority
    subprocess.run(
        command, cwd=authority, env={"CA_ALT_NAMES": ""}, capture_output=True, check=True
    )
    (folder / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], capture_output=True, check=True)


def _refusal(fleet: Fleet, certificates: Path) -> str:
    """Try to connect; return why the broker's TLS refuses, or "" when it takes the client in."""
    try:
        with _connected(fleet, certificates, "visitor"):
            return ""
    except ssl.SSLError as error:
        return str(error)


@contextmanager
def _connected(fleet: Fleet, certificates: Path, name: str) -> Iterator[paho.Client]:
    """Connect with the certificate in a folder. Raises ssl.SSLError with the broker's reason."""
    client = mqtt_client(certificates, name, protocol=MQTTProtocolVersion.MQTTv5)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", fleet.broker_port)
    client.loop_start()
    try:
        assert connected.wait(_PATIENCE_S)
        yield client
    finally:
        client.disconnect()
        client.loop_stop()
