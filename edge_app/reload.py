"""The configuration read again while the appliance runs: what may change now, what needs a restart.

Anything else than the keys in `LIVE` belongs to a part that was built from it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edge_app.config import Config
from edge_app.control import Panel
from edge_app.domain import Event
from edge_app.errors import ConfigError
from edge_app.job import rules_of
from edge_app.loop import Loop
from edge_app.service.notify import Notifier

log = logging.getLogger(__name__)

LIVE = frozenset(
    {
        "model.performance",
        "model.threshold",
        "model.top_k",
        "publish.heartbeat_s",
        "publish.hysteresis",
        "publish.min_interval_s",
        "publish.mode",
        "publish.smoothing_s",
        "stats.interval_s",
    }
)


def changed(before: Config, after: Config) -> tuple[str, ...]:
    """Return the keys that differ, dotted and sorted, such as "camera.main.fps"."""
    old, new = _flat(msgspec.to_builtins(before)), _flat(msgspec.to_builtins(after))
    return tuple(sorted(key for key in old | new if old.get(key) != new.get(key)))


class Reloader:
    """Reads the configuration again and puts it into effect. Used from the loop's thread."""

    def __init__(
        self,
        config: Config,
        read_again: Callable[[], Config],
        loop: Loop,
        panel: Panel,
        notifier: Notifier,
        *,
        tell: Callable[[Event], None],
    ) -> None:
        """`config` is the one in effect; `read_again` raises ConfigError. `tell` publishes."""
        self._config = config
        self._read_again = read_again
        self._loop = loop
        self._panel = panel
        self._notifier = notifier
        self._tell = tell

    def reload(self) -> None:
        """Put what is in the file now into effect; with faults in it, change nothing."""
        self._notifier.reloading()
        try:
            said = self._apply(self._read_again())
        except ConfigError as error:
            faults = "; ".join(error.faults) or error.hint
            said = f"configuration refused, the old one stays: {error}: {faults}"
            event = Event("config_refused", said)
            log.warning("%s", said, extra=event.fields())
            self._tell(event)
        self._notifier.reloaded(said)

    def _apply(self, after: Config) -> str:
        keys = changed(self._config, after)
        if fixed := [key for key in keys if key not in LIVE]:
            said = f"restarting, since this cannot change while it runs: {', '.join(fixed)}"
            self._loop.stop()
        else:
            said = f"configuration read again; changed: {', '.join(keys) or 'nothing'}"
            self._config = after
            self._loop.rules = rules_of(after)
            self._loop.stats_every_s = after.stats.interval_s
            self._panel.change(**_settings(after, self._panel.has_edgetpu))
        event = Event("config_reloaded", said)
        log.info("%s", said, extra=event.fields())
        self._tell(event)
        return said


def _settings(config: Config, has_edgetpu: bool) -> dict[str, object]:
    """Return the configured values of what commands may have changed meanwhile."""
    found: dict[str, object] = {
        "threshold": config.model.threshold,
        "top_k": config.model.top_k,
        "mode": config.publish.mode,
    }
    return found | ({"performance": config.model.performance} if has_edgetpu else {})


def _flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        found |= _flat(value, here) if isinstance(value, dict) else {here: value}
    return found
