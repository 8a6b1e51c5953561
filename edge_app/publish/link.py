"""How to reach a broker. paho is imported here and by the two modules beside it that use a link."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_app.errors import ConfigError

KEEPALIVE_S = 30
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and how to be let in.

    `tls`: encrypt, and check the server's name. `only_3_1_1`: do not try MQTT 5.
    """

    host: str
    port: int
    client_id: str
    tls: bool = False
    username: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    only_3_1_1: bool = False


def new_client(broker: Broker, protocol: MQTTProtocolVersion) -> paho.Client:
    """Make a client that is not connected yet and leaves reconnecting to its owner.

    Raises ConfigError when the certificate files cannot be used.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=broker.client_id,
        protocol=protocol,
        reconnect_on_failure=False,
    )
    client.connect_timeout = _CONNECT_TIMEOUT_S
    if broker.username:
        client.username_pw_set(broker.username, broker.password or None)
    if broker.tls:
        client.tls_set_context(tls_context(broker))
    return client


def tls_context(broker: Broker) -> ssl.SSLContext:
    """Make the context for one connection. Raises ConfigError for unusable certificate files."""
    try:
        context = ssl.create_default_context(cafile=broker.ca_file or None)
        if broker.cert_file:
            context.load_cert_chain(broker.cert_file, broker.key_file)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(filter(None, (broker.ca_file, broker.cert_file, broker.key_file)))
        raise ConfigError(f"certificates cannot be used ({names}): {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def read_password(file: str) -> str:
    """Return the MQTT password from `file`, else from the systemd credential `mqtt-password`."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(file) if file else Path(folder or "/nonexistent") / "mqtt-password"
    if not file and not path.exists():
        return ""
    return path.read_text(encoding="utf-8").strip("\r\n")
