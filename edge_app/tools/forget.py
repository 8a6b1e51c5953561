"""`edge-app run --forget`: take back everything this device has left on the broker."""

from __future__ import annotations

import sys

from edge_app.announce import memory_of, remember, remembered
from edge_app.config import Config
from edge_app.errors import EXIT_OK, EdgeAppError
from edge_app.publish.clear import clear_retained
from edge_app.publish.discovery import DEFAULT_PREFIX, discovery_topic
from edge_app.publish.wire import ONLINE, Topics
from edge_app.publishers import broker_of


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
    memory = memory_of(config)
    prefix = config.mqtt.discovery_prefix or DEFAULT_PREFIX
    announced = {discovery_topic(prefix, config.device.id)} | remembered(memory)
    broker = broker_of(config.mqtt, client_id=f"edge-app-{config.device.id}-forget")
    held = clear_retained(broker, [*sorted(announced), topics.info, topics.stats, topics.status])
    remember(memory, set())
    for topic in held:
        print(f"forgotten: {topic}")
    if held.get(topics.status) == ONLINE:
        print(
            f"note: {config.device.id} was online; if it still runs, stop it and do this again",
            file=sys.stderr,
        )
    return EXIT_OK
