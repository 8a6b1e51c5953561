"""`edge-app run --forget`: take back everything this device has left on the broker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edge_app.announce import memory_of, remember, remembered
from edge_app.config import Config
from edge_app.errors import EXIT_OK, EdgeAppError
from edge_app.publish.claim import TakenError
from edge_app.publish.clear import clear_retained
from edge_app.publish.discovery import DEFAULT_PREFIX, discovery_topic
from edge_app.publish.wire import ONLINE, Topics
from edge_app.publishers import broker_of, claiming


def forget(config: Config) -> int:
    """Empty the retained messages of the configured device and say which there were.

    Raises EdgeAppError when the broker does not do it.
    """
    if not config.mqtt.url:
        raise EdgeAppError(
            "mqtt.url is empty: there is no broker to forget this device",
            hint="give the configuration the device ran with, with --config",
        )
    topics = Topics(config.mqtt.base, config.device.id)
    prefix = config.mqtt.discovery_prefix or DEFAULT_PREFIX
    broker = broker_of(config.mqtt, client_id=f"edge-app-{config.device.id}-forget")
    with _own_memory(config) as memory:
        announced = {discovery_topic(prefix, config.device.id)} | remembered(memory)
        left = [*sorted(announced), topics.info, topics.stats, topics.status]
        held = clear_retained(broker, left)
        remember(memory, set())
    for topic in held:
        print(f"forgotten: {topic}")
    if not held:
        print(f"nothing of {config.device.id} is left on the broker, as far as we may read it")
    if held.get(topics.status) == ONLINE:
        print(
            f"note: {config.device.id} was online; if it still runs, stop it and do this again",
            file=sys.stderr,
        )
    return EXIT_OK


@contextmanager
def _own_memory(config: Config) -> Iterator[Path | None]:
    """Claim the list of announcements; None when it is empty, or a running appliance's.

    What such a one has announced may be another device's, and is for it to take back.
    """
    memory = memory_of(config)
    with ExitStack() as stack:
        if remembered(memory):
            try:
                claim = stack.enter_context(claiming(config))
            except TakenError as error:
                print(f"note: {error}; what that one remembers is left to it", file=sys.stderr)
            else:
                yield memory if claim is not None and claim.held else None
                return
        yield None
