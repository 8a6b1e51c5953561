"""Keeps what Home Assistant is told about this appliance right, and takes it back."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path

from edge_app import __version__
from edge_app.config import Config
from edge_app.domain import Message
from edge_app.files import write_file
from edge_app.publish.discovery import (
    Device,
    abilities,
    announcement,
    discovery_topic,
    removal,
)
from edge_app.publish.vitals import Abilities
from edge_app.publish.wire import Topics
from edge_app.publishers import spool_path
from edge_app.stats import Health
from edge_app.telemetry import Window

log = logging.getLogger(__name__)

LISTENING_S = 5.0  # Home Assistant subscribes to a new entity's topics within a second or two

ReadHealth = Callable[[Window, int], Health]


class Announcer:
    """Announces the appliance, and again when it turns out that it can tell more.

    `offer` publishes; `repeat` says results again after so many seconds, for new entities, which
    have missed those that were published before. `memory`: the file that lists announcements, if
    it is this appliance's alone; without one nothing is taken back, and nothing written.
    """

    def __init__(
        self,
        config: Config,
        topics: Topics,
        offer: Callable[[Message], None],
        repeat: Callable[[float], None],
        memory: Path | None,
    ) -> None:
        self._prefix = config.mqtt.discovery_prefix if config.mqtt.url else ""
        self._device = Device(
            id=config.device.id,
            area=config.device.area,
            version=__version__,
            machine=platform.machine(),
            cameras=tuple(config.camera),
        )
        self._topics = topics
        self._offer = offer
        self._repeat = repeat
        self._can = Abilities()
        self._memory = memory
        self._current = {discovery_topic(self._prefix, config.device.id)} if self._prefix else set()
        self._stale = remembered(self._memory) - self._current

    def start(self) -> None:
        """Announce; take back what an earlier configuration announced elsewhere."""
        for topic in sorted(self._stale):
            log.info("taking back the announcement on %s", topic)
            self._offer(removal(topic))
        remember(self._memory, self._current | self._stale)
        self.announce()
        self._repeat(LISTENING_S)

    def announce(self) -> None:
        """Say what there is, as far as is known; nothing without a prefix."""
        if self._prefix:
            self._offer(announcement(self._prefix, self._device, self._topics, self._can))

    def hearing(self, read_health: ReadHealth) -> ReadHealth:
        """Return what reads the same reports, and lets the announcer learn from them."""

        def read(window: Window, now_ns: int) -> Health:
            health = read_health(window, now_ns)
            self._learn(health)
            return health

        return read

    def _learn(self, health: Health) -> None:
        can = abilities(health, self._can)
        if can != self._can:
            self._can = can
            self.announce()
            self._repeat(LISTENING_S)
        if self._stale and health.mqtt.connects:  # then the broker knows
            self._stale = set()
            remember(self._memory, self._current)


def memory_of(config: Config) -> Path | None:
    """Return the file with the topics of announcements that have not been taken back.

    It lies beside the spool, and whoever has claimed that may use it. None without a broker, or
    when the spool is in memory: then a change of prefix or name leaves the old announcement where
    it is.
    """
    if not config.mqtt.url or not config.spool.path:
        return None
    spool = spool_path(config.spool.path)
    return spool.with_name(f"{spool.name}.announced")


def remembered(memory: Path | None) -> set[str]:
    """Return the topics in the file `memory`; none when there is no such file."""
    if memory is None:
        return set()
    try:
        return set(memory.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError) as error:
        log.warning("what was announced before is not known: %s: %s", memory, error)
        return set()


def remember(memory: Path | None, topics: set[str]) -> None:
    """Make `topics` the content of the file `memory`, unless they are already."""
    if memory is None or topics == remembered(memory):
        return
    try:
        write_file(memory, "".join(f"{topic}\n" for topic in sorted(topics)).encode())
    except OSError as error:
        log.warning("what is announced cannot be remembered: %s: %s", memory, error.strerror)
