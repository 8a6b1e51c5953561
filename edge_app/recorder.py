"""The flight recorder: the last minute, in memory, to tell why the appliance ended.

Nothing is written to a disk while all is well, so it wears no SD card. Under systemd a copy lies in
the runtime directory, which is memory too: it outlives a process that is killed or crashes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from edge_app.domain import Event
from edge_app.files import runtime_folder, write_file
from edge_app.stats import Health, Percentiles

log = logging.getLogger(__name__)

SECONDS = 60
_EVENTS = 50
_MAX_MESSAGE = 300  # characters of an event's
# systemd's journal cuts a line of standard error in two after 48 KiB (LineMax=).
MAX_BYTES = 40_000
_COPY_EVERY_S = 5  # a copy takes a millisecond or two
_KILLED = "found at the next start: it was killed, or crashed"

Cell = float | str | None


class FlightRecord(Struct, frozen=True):
    """What happened last, oldest first. `reason`: why it is asked for.

    `seconds`: a row for each of the last 60 s, of what `columns` names. `events`: the last 50,
    whenever they were; `uptime_ms` as everywhere.
    """

    reason: str
    columns: list[str]
    seconds: list[list[Cell]]
    events: list[dict[str, Cell]]


def _percentiles(stage: str) -> dict[str, Callable[[Health], Cell]]:
    def of(health: Health, which: str) -> Cell:
        found: Percentiles | None = health.latency_ms[stage]
        return None if found is None else float(getattr(found, which))

    return {
        f"{stage}_p50_ms": lambda health: of(health, "p50"),
        f"{stage}_p95_ms": lambda health: of(health, "p95"),
        f"{stage}_max_ms": lambda health: of(health, "max"),
    }


_CELLS: Mapping[str, Callable[[Health], Cell]] = {
    "captured_fps": lambda health: health.fps.captured,
    "inferred_fps": lambda health: health.fps.inferred,
    "published_fps": lambda health: health.fps.published,
    "dropped": lambda health: health.frames.dropped,
    "gated": lambda health: health.frames.gated,
    "corrupt": lambda health: health.frames.corrupt,
    **_percentiles("preprocess"),
    **_percentiles("invoke"),
    **_percentiles("end_to_end"),
    "backend": lambda health: health.backend,
    "accelerator": lambda health: health.accelerator.state,
    "queued": lambda health: health.spool.queued,
    "lost": lambda health: health.spool.dropped,
    "connects": lambda health: health.mqtt.connects,
    "rss_mb": lambda health: health.process.rss_mb,
    "cpu_percent": lambda health: health.process.cpu_percent,
    "watts": lambda health: health.power.watts,
    "soc_c": lambda health: health.thermal_c.soc,
    "tpu_c": lambda health: health.thermal_c.tpu,
    "throttled": lambda health: (
        None if health.throttled.now is None else " ".join(health.throttled.now)
    ),
}
COLUMNS = ["uptime_ms", *_CELLS]


class Recorder:
    """Keeps what was said last; `copy` is where a copy lies, None for nowhere.

    Every method but `recover` and `close` may be called from any thread.
    """

    def __init__(self, copy: Path | None = None) -> None:
        self._seconds: deque[tuple[int, Health]] = deque(maxlen=SECONDS)
        self._events: deque[tuple[int, Event]] = deque(maxlen=_EVENTS)
        self._copy = copy
        self._copied_ns = 0

    def add_second(self, health: Health, now_ns: int) -> None:
        """Keep the report on one second."""
        self._seconds.append((now_ns, health))
        if self._copy is not None and now_ns - self._copied_ns >= _COPY_EVERY_S * 1e9:
            self._copied_ns = now_ns
            try:
                write_file(self._copy, msgspec.json.encode(self.record(_KILLED)))
            except OSError as error:
                log.warning("flight recorder: no copy at %s: %s", self._copy, error)
                self._copy = None

    def recover(self) -> bool:
        """Log what a process before this one has left behind, if it ended without a word.

        True then, once: it is taken away.
        """
        if self._copy is None:
            return False
        try:
            data = self._copy.read_bytes()
            msgspec.json.decode(data, type=FlightRecord)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("flight recorder: %s cannot be read: %s", self._copy, error)
            return False
        log.error("flight recorder: %s", data.decode())
        self.close()  # it was told, and not to be told again should this process be killed now
        return True

    def close(self) -> None:
        """Take the copy away: this process has said what there is to say."""
        if self._copy is not None:
            with contextlib.suppress(OSError):
                self._copy.unlink(missing_ok=True)

    def add_event(self, event: Event) -> None:
        """Keep what has just happened."""
        self._events.append((time.monotonic_ns(), event))

    def record(self, reason: str) -> FlightRecord:
        """Return what there is, at most MAX_BYTES as JSON: the oldest events are left out first."""
        rows = [
            [now_ns // 1_000_000, *(cell(health) for cell in _CELLS.values())]
            for now_ns, health in self._seconds.copy()
        ]
        events = [_told(now_ns, event) for now_ns, event in self._events.copy()]
        record = FlightRecord(reason[:_MAX_MESSAGE], COLUMNS, rows, events)
        while events and len(msgspec.json.encode(record)) > MAX_BYTES:
            del events[0]
        return record

    def write(self, reason: str) -> None:
        """Log everything as one line of JSON."""
        line = msgspec.json.encode(self.record(reason)).decode()
        log.error("flight recorder: %s", line)


def _told(now_ns: int, event: Event) -> dict[str, Cell]:
    return {
        "uptime_ms": now_ns // 1_000_000,
        "event": event.kind,
        "message": event.message[:_MAX_MESSAGE],
    }


def place_of_copy(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return where systemd lets this service keep what shall outlive the process (RAM)."""
    folder = runtime_folder(environ)
    return folder / "flight.json" if folder else None
