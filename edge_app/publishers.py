"""Opens what messages go to: the configured broker with a spool before it, or standard output."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_app.config import Config, Mqtt
from edge_app.config import Spool as SpoolConfig
from edge_app.domain import Event, Message, Publisher
from edge_app.errors import UsageError
from edge_app.publish import wire
from edge_app.sensors.clock import read_clock

if TYPE_CHECKING:
    from edge_app.publish.claim import Claim
    from edge_app.publish.link import Broker
    from edge_app.publish.spool import Spool

MEMORY_MAX_BYTES = 32_000_000  # of messages while the disk takes none, however large it is


def _ignore(_event: Event) -> None: ...


@contextmanager
def claiming(config: Config) -> Iterator[Claim | None]:
    """Keep other appliances from what this one has on the disk; None when that is nothing.

    The claim may turn out not to be held: see there. Raises TakenError or ForeignError.
    """
    if not config.mqtt.url or not config.spool.path:
        yield None
        return
    from edge_app.publish.claim import Claim

    with closing(Claim(spool_path(config.spool.path))) as claim:
        claim.take()
        yield claim


def _ask_ourselves_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def publishing(
    config: Config,
    topics: wire.Topics,
    *,
    claim: Claim | None = None,
    subscriptions: Sequence[str] = (),
    on_received: Callable[[], None] = lambda: None,
    on_event: Callable[[Event], None] = _ignore,
) -> Iterator[Publisher]:
    """Connect to the configured broker, or write JSON lines to stdout when there is none.

    `claim`: on the spool, from `claiming`. `subscriptions`, `on_received`: see `MqttPublisher`.
    `on_event` is told what happens to the spool, from any thread. When the block ends, what the
    broker does not have goes to the disk.
    """
    if not config.mqtt.url:
        from edge_app.publish.jsonl import JsonLinesPublisher

        if sys.stdout is None:  # its descriptor was closed before Python began
            raise UsageError(
                "standard output is closed, and mqtt.url is empty: results have nowhere to go",
                hint="set mqtt.url, or let standard output be open",
            )
        with closing(
            JsonLinesPublisher(sys.stdout.buffer, on_reader_gone=_ask_ourselves_to_end)
        ) as lines:
            yield lines
        return
    from edge_app.publish.mqtt import MqttPublisher

    broker = broker_of(config.mqtt, client_id=f"edge-app-{config.device.id}")
    with spooling(config.spool, topics, on_event, claim) as spool:
        publisher = MqttPublisher(
            broker,
            spool,
            online=wire.status_message(topics, online=True),
            offline=wire.status_message(topics, online=False),
            subscriptions=subscriptions,
            on_received=on_received,
        )
        try:
            yield publisher
        finally:
            publisher.close()


@contextmanager
def spooling(
    config: SpoolConfig,
    topics: wire.Topics,
    on_event: Callable[[Event], None] = _ignore,
    claim: Claim | None = None,
) -> Iterator[Spool]:
    """Make the configured spool: in memory, and on a disk unless its path is empty."""
    from edge_app.publish.keeper import Keeper
    from edge_app.publish.spool import Spool

    def as_message(event: Event) -> Message:
        on_event(event)
        return wire.event_message(topics, event, time.monotonic_ns(), read_clock())

    max_bytes = config.max_mb * 1_000_000
    if not config.path:
        yield Spool(max_bytes, as_message)
        return
    spool = Spool(min(max_bytes, MEMORY_MAX_BYTES), as_message)
    keeper = Keeper(spool, spool_path(config.path), max_bytes, claim=claim)
    try:
        yield spool
    finally:
        keeper.close()


def spool_path(configured: str) -> Path:
    """Return where the spool is: systemd's state directory stands for the default's folder."""
    state_dir = os.environ.get("STATE_DIRECTORY", "")
    if configured == SpoolConfig().path and state_dir:
        return Path(state_dir) / Path(configured).name
    return Path(configured)


def spool_faults(config: Config) -> Iterator[str]:
    """Yield what lies where the spool should be and cannot be used for it."""
    from edge_app.publish.claim import fault_of

    if config.mqtt.url and config.spool.path:
        with suppress(OSError):  # the user who runs the appliance may see more
            if fault := fault_of(spool_path(config.spool.path)):
                yield fault


def broker_of(mqtt: Mqtt, client_id: str) -> Broker:
    """Return where the configured broker is and how to be let in."""
    from edge_app.publish.link import Broker, credential, read_password

    url = urlsplit(mqtt.url)
    return Broker(
        host=url.hostname or "",
        port=url.port or (8883 if url.scheme == "mqtts" else 1883),
        client_id=client_id,
        tls=url.scheme == "mqtts",
        username=mqtt.username,
        password=read_password(mqtt.password_file),
        ca_file=mqtt.ca_file or credential("mqtt-ca"),
        cert_file=mqtt.cert_file or credential("mqtt-cert"),
        key_file=mqtt.key_file or credential("mqtt-key"),
        only_3_1_1=mqtt.version == "3.1.1",
    )
