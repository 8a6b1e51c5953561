"""How to reach a broker, and paho's client with what it lacks."""

from __future__ import annotations

import os
import random
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_app.errors import ConfigError, Unreadable
from edge_app.files import read_text

KEEPALIVE_S = 30
_CONNECT_TIMEOUT_S = 10.0
_MAX_PASSWORD_BYTES = 65_535  # MQTT's bound
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.5, 60.0
_STABLE_S = 10.0
BAD_CREDENTIALS = ("Not authorized", "Bad user name or password", "Banned")


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


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to wait before the next attempt to connect."""

    pause_s: float = _PAUSE_FIRST_S / 2

    def after(self, held_s: float, refusal: str) -> Retry:
        """Return the wait after a connection that held for `held_s`, or met with `refusal`.

        Twice the last one, up to a minute. A connection that held for a while starts anew; one
        lost at once does not: two devices of the same name would throw each other out for ever.
        Credentials do not get better by asking again soon.
        """
        if refusal in BAD_CREDENTIALS:
            return Retry(_PAUSE_MAX_S)
        if held_s >= _STABLE_S:
            return Retry(_PAUSE_FIRST_S)
        return Retry(min(2 * self.pause_s, _PAUSE_MAX_S))

    def jittered_s(self) -> float:
        """Keep a fleet from coming back in step after the broker's restart."""
        return self.pause_s * random.uniform(0.5, 1.0)  # noqa: S311


class Client(paho.Client):
    """paho's client, which remembers in `failure` why the link failed, and reads no giants.

    Both methods are paho's own secret: the tests of TLS and of giants notice when it calls them no
    longer.
    """

    failure: OSError | None = None
    max_packet_bytes = 1 << 28

    def _sock_recv(self, bufsize: int) -> bytes:
        """Read up to `bufsize` bytes: never more than what the packet still lacks."""
        try:
            if bufsize > self.max_packet_bytes:
                raise ConnectionError(f"a packet of more than {self.max_packet_bytes} bytes")
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.failure = error
            raise

    def _sock_send(self, buf: bytes | bytearray) -> int:
        """Send. Of a failure the next read will tell: a peer that hangs up may have said why."""
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.failure = error
            return len(buf)


def new_client(
    broker: Broker, protocol: MQTTProtocolVersion, max_packet_bytes: int = 1 << 28
) -> Client:
    """Make a client that is not connected yet and leaves reconnecting to its owner.

    A broker of MQTT 5 is to be told of `max_packet_bytes`; a larger packet ends the connection.
    Raises ConfigError when the certificate files cannot be used.
    """
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=broker.client_id,
        protocol=protocol,
        reconnect_on_failure=False,
    )
    client.max_packet_bytes = max_packet_bytes
    client.connect_timeout = _CONNECT_TIMEOUT_S
    if broker.username:
        client.username_pw_set(broker.username, broker.password or None)
    if broker.tls:
        client.tls_set_context(tls_context(broker))
    return client


def is_at_end(link: Any) -> bool:
    """Whether the peer has closed a plain connection; a TLS one cannot be asked without reading."""
    if not isinstance(link, socket.socket) or isinstance(link, ssl.SSLSocket):
        return False
    try:
        return not link.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True


def tls_context(broker: Broker) -> ssl.SSLContext:
    """Make the context for one connection. Raises ConfigError for unusable certificate files."""
    try:
        context = ssl.create_default_context(cafile=broker.ca_file or None)
        if broker.cert_file:
            # A passphrase would be asked of whoever sits at the terminal, for as long as it takes.
            context.load_cert_chain(broker.cert_file, broker.key_file, lambda: "")
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(filter(None, (broker.ca_file, broker.cert_file, broker.key_file)))
        raise ConfigError(f"certificates cannot be used ({names}): {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 began to insist on extensions that authorities made by hand seldom have: a system
    # upgrade would cut devices off. Signatures, names and dates are checked all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def read_password(file: str) -> str:
    """Return the MQTT password from `file`, else from the systemd credential `mqtt-password`.

    Empty when there is neither. Raises ConfigError for a file that cannot be read.
    """
    path = file or credential("mqtt-password")
    if not path:
        return ""
    try:
        return read_text(Path(path), _MAX_PASSWORD_BYTES).strip("\r\n")
    except Unreadable as error:
        raise ConfigError(
            f"MQTT password {path}: cannot be read: {error}",
            hint=error.hint or "a text file with the password alone",
        ) from error


def credential(name: str) -> str:
    """Return the path of a credential that systemd hands to the service; "" when there is none.

    An empty one stands for none: a unit cannot say that a credential is optional, but can give an
    empty default for it.
    """
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent", name)
    try:
        return str(path) if path.read_bytes().strip() else ""
    except FileNotFoundError:
        return ""
    except OSError:  # whoever opens it says why it cannot be read
        return str(path)
