"""`edge-app watch`: what the devices say, live in a terminal or as plain lines."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge_app.config import Mqtt
from edge_app.errors import EXIT_OK, ConfigError, EdgeAppError, UsageError
from edge_app.publish.link import Broker
from edge_app.publish.listen import Received, listening
from edge_app.publishers import broker_of
from edge_app.tools.heard import Best, Latency, Rates

_REFRESH_S = 0.25
_RETRY_S = 1.0
_EVENTS = 5  # below the table


class Seen(msgspec.Struct, frozen=True):
    """Of a result, what is shown."""

    ts: str
    camera: str
    backend: str
    labels: list[Best]


class Happened(msgspec.Struct, frozen=True):
    """Of an event, what is shown."""

    ts: str
    event: str
    message: str


class Stats(msgspec.Struct, frozen=True):
    """Of a report, what is shown."""

    fps: Rates
    latency_ms: Latency


@dataclass
class View:
    """The last word of every device: its status, its stats, and each camera's result.

    `events`: the newest ones of all devices, with the device.
    """

    status: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Stats] = field(default_factory=dict)
    results: dict[tuple[str, str], Seen] = field(default_factory=dict)
    events: deque[tuple[str, Happened]] = field(default_factory=lambda: deque(maxlen=_EVENTS))

    def absorb(self, topic: str, payload: bytes) -> Seen | Happened | None:
        """Take one message in; returns a result or an event. Ignores what is not ours."""
        *_, device, kind = ["", *topic.split("/")]
        if kind == "status":
            self.status[device] = payload.decode(errors="replace")
            return None
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            if kind == "stats":
                self.stats[device] = msgspec.json.decode(payload, type=Stats)
            elif kind == "result":
                result = msgspec.json.decode(payload, type=Seen)
                self.results[device, result.camera] = result
                return result
            elif kind == "event":
                event = msgspec.json.decode(payload, type=Happened)
                self.events.append((device, event))
                return event
        return None


def run(mqtt: Mqtt, device: str, *, seconds: float | None) -> int:
    """Show `device` ("+": all) of the configured broker until `seconds` have passed or Ctrl-C."""
    if set(device) & set("/#") or ("+" in device and device != "+"):
        raise UsageError(f"DEVICE: found {device}, allowed: one device's id, or + for all")
    if not mqtt.url:
        raise ConfigError("mqtt.url is empty: there is no broker to watch", hint="set mqtt.url")
    broker = broker_of(mqtt, client_id=f"edge-app-watch-{os.getpid()}")
    if not sys.stdout.isatty():  # else the table says so
        print(f"waiting for what {mqtt.base}/{device} says", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        watch(broker, f"{mqtt.base}/{device}", seconds=seconds, goes_on=lambda: True)
    return EXIT_OK


def watch(
    broker: Broker,
    prefix: str,
    *,
    seconds: float | None,
    goes_on: Callable[[], bool],
    footer: str = "",
) -> int:
    """Show what is below topic `prefix` while `goes_on`; return how many results were seen."""
    end_s = time.monotonic() + seconds if seconds else float("inf")
    console = Console()
    view, seen = View(), 0
    with contextlib.ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
        for note, batch in _batches(broker, prefix):
            for topic, payload in batch:
                record = view.absorb(topic, payload)
                seen += isinstance(record, Seen)
                if live is None:
                    _print_line(topic, record, view)
            if live is None and note:
                print(note, file=sys.stderr, flush=True)
            elif live is not None:
                below = Text("\n".join((*_told(view), note or footer)), style="dim")
                live.update(Group(table(view), below), refresh=True)
            if not goes_on() or time.monotonic() > end_s:
                break
    return seen


def _batches(broker: Broker, prefix: str) -> Iterator[tuple[str, list[Received]]]:
    """Yield what arrives, at least once a refresh; with a note when the broker has gone away.

    Raises EdgeAppError when it cannot be reached at the start.
    """
    filters = [f"{prefix}/{kind}" for kind in ("status", "stats", "result", "event")]
    was_connected = False
    while True:
        try:
            with listening(broker, filters) as arrived:
                was_connected = True
                while (batch := _arrivals(arrived)) is not None:
                    yield "", batch
        except EdgeAppError:
            if not was_connected:
                raise
        yield f"the broker at {broker.host}:{broker.port} is away; trying again", []
        time.sleep(_RETRY_S)  # a broker that is not there gives nothing to wait on


def _arrivals(arrived: queue.SimpleQueue[Received | None]) -> list[Received] | None:
    """Return what has arrived, after waiting for at most one refresh; None: the link is lost."""
    batch: list[Received] = []
    with contextlib.suppress(queue.Empty):
        received = arrived.get(timeout=_REFRESH_S)
        while received is not None:
            batch.append(received)
            received = arrived.get_nowait()
        if not batch:
            return None
        arrived.put(None)  # first what came before it
    return batch


def _told(view: View) -> list[str]:
    return [f"{event.ts} {device} {event.event}: {event.message}" for device, event in view.events]


def table(view: View) -> Table:
    """Lay out one row a camera; what is the device's own stands in the row of its first one."""
    result = Table(expand=True)
    shown: set[str] = set()
    for title in ("device", "camera", "label"):
        result.add_column(title)
    for title in ("score", "fps", "p95 ms", "backend"):
        result.add_column(title, justify="right")
    for (device, camera), record in sorted(view.results.items()):
        label, score = best(record)
        fps, p95_ms = ("", "") if device in shown else figures(view.stats.get(device))
        shown.add(device)
        if view.status.get(device) == "offline":
            result.add_row(device, camera, "offline", style="dim")
        else:
            result.add_row(device, camera, label, score, fps, p95_ms, record.backend)
    for device in sorted(view.status.keys() - {device for device, _ in view.results}):
        result.add_row(device, "", view.status[device], style="dim")
    if not view.results and not view.status:
        result.add_row("waiting for the first result ...")
    return result


def best(record: Seen) -> tuple[str, str]:
    """Return the leading label and its score as shown."""
    labels = record.labels
    return (labels[0].label, f"{labels[0].score:.0%}") if labels else ("(nothing)", "-")


def figures(stats: Stats | None) -> tuple[str, str]:
    """Return inferred frames per second and end-to-end p95 as shown."""
    latency = stats.latency_ms.end_to_end if stats else None
    return (
        f"{stats.fps.inferred:.1f}" if stats else "-",
        f"{latency.p95:.1f}" if latency else "-",
    )


def _print_line(topic: str, record: Seen | Happened | None, view: View) -> None:
    device = topic.split("/")[-2]
    if isinstance(record, Happened):
        print(f"{record.ts} {device} {record.event}: {record.message}", flush=True)
        return
    if record is None:
        if topic.endswith("/status") and view.status[device] == "offline":
            print(f"{device} is offline", flush=True)
        return
    label, score = best(record)
    fps, p95_ms = figures(view.stats.get(device))
    print(
        f"{record.ts} {device}/{record.camera} {label} {score} "
        f"fps={fps} p95_ms={p95_ms} backend={record.backend}",
        flush=True,
    )
