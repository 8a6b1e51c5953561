"""Hears everything that devices say, from a place of its own, and tells what is missing.

Its session at the broker is a lasting one: what is published while its link is down, or while the
broker restarts, is kept for it.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

_PATIENCE_S = 240.0
_RECONNECT_S = 2


@dataclass(frozen=True, slots=True)
class Heard:
    """One message."""

    topic: str
    payload: bytes
    retained: bool

    @property
    def device(self) -> str:
        return self.topic.split("/")[1]

    @property
    def kind(self) -> str:
        return self.topic.rpartition("/")[2]

    def fields(self) -> dict[str, Any]:
        """Return the JSON object; {} when it is none."""
        decoded = json.loads(self.payload) if self.payload.startswith(b"{") else {}
        assert isinstance(decoded, dict)
        return decoded


class Ear:
    """What was heard so far; made by `hearing`."""

    def __init__(self, client: paho.Client) -> None:
        self._client = client
        self._messages: list[Heard] = []
        self._news = threading.Condition()

    def take(self, message: Heard) -> None:
        with self._news:
            self._messages.append(message)
            self._news.notify_all()

    def command(self, device: str, command: str) -> dict[str, Any]:
        """Send a command, and return the reply."""
        mark = self.mark()
        self._client.publish(f"edge-cmd/{device}/{command}", qos=1)
        return self.wait_for(device, "reply", since=mark).fields()

    def mark(self) -> int:
        """Return the present moment, for `since`."""
        with self._news:
            return len(self._messages)

    def messages(self, device: str, kind: str, since: int = 0) -> list[Heard]:
        with self._news:
            heard = self._messages[since:]
        return [each for each in heard if (each.device, each.kind) == (device, kind)]

    def wait_for(
        self,
        device: str,
        kind: str,
        wanted: Callable[[Heard], bool] = lambda _: True,
        *,
        since: int,
        timeout_s: float = _PATIENCE_S,
    ) -> Heard:
        """Return the first message of that kind after `since` that is as wanted."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with self._news:
                seen = len(self._messages)
            for message in self.messages(device, kind, since):
                if wanted(message):
                    return message
            with self._news:
                left_s = deadline_s - time.monotonic()
                if not self._news.wait_for(lambda: len(self._messages) > seen, left_s):  # noqa: B023
                    raise AssertionError(
                        f"no such {kind} of {device} within {timeout_s:.0f} s; "
                        f"heard {len(self.messages(device, kind, since))} others"
                    )

    def numbered(self, device: str) -> list[dict[str, Any]]:
        """Return the messages of a device that carry a sequence number, in the order heard."""
        with self._news:
            heard = [each for each in self._messages if each.device == device]
        return [each.fields() for each in heard if "seq" in each.fields()]

    def unaccounted(self, device: str) -> list[int]:
        """Return the numbers between first and last that were neither heard nor declared lost.

        A device that ended without a goodbye says which numbers will never come, in `spool_gap`.
        """
        messages = self.numbered(device)
        seqs = {each["seq"] for each in messages}
        gaps = [each["details"] for each in messages if each.get("event") == "spool_gap"]
        missing = set(range(min(seqs), max(seqs) + 1)) - seqs if seqs else set()
        for gap in gaps:
            missing -= set(range(gap["first"], gap["last"] + 1))
        return sorted(missing)


@contextmanager
def hearing(port: int, certificates: Path, filters: Sequence[str]) -> Iterator[Ear]:
    """Subscribe with the certificate in a folder (client.crt, client.key, ca.crt)."""
    client = mqtt_client(certificates, "the-ear", lasting=True)
    ear = Ear(client)
    client.on_message = lambda _client, _data, message: ear.take(
        Heard(message.topic, bytes(message.payload), message.retain)
    )

    def subscribe(client: paho.Client, *_: Any) -> None:
        client.subscribe([(each, 1) for each in filters])

    client.on_connect = subscribe
    client.reconnect_delay_set(_RECONNECT_S, _RECONNECT_S)
    client.connect_async("127.0.0.1", port, keepalive=20)
    client.loop_start()
    try:
        yield ear
    finally:
        client.disconnect()
        client.loop_stop()


def mqtt_client(
    certificates: Path,
    name: str,
    *,
    lasting: bool | None = None,
    protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311,
) -> paho.Client:
    """Make a client that shows the certificate in a folder; not connected yet.

    `lasting`: with a session that outlives the connection; of 3.1.1 only.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        clean_session=None if lasting is None else not lasting,
        protocol=protocol,
    )
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    # With 1.3 a client has said its first words by the time it is refused, and the answer to them
    # can overtake the reason.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificates / "client.crt", certificates / "client.key")
    client.tls_set_context(context)
    return client
