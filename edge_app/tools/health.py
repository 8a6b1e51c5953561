"""`edge-app health`: does the appliance on this machine work, as systemd and the broker see it?

For whoever has just changed it: provisioning takes a release back when this fails.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge_app.config import Config
from edge_app.errors import EXIT_OK, EXIT_UNAVAILABLE, EdgeAppError
from edge_app.publish.listen import Received, listening
from edge_app.publishers import broker_of
from edge_app.tools.baseline import Baseline
from edge_app.tools.unit import Unit, read_unit

_POLL_S = 0.25
_RETRY_S = 1.0


class Best(msgspec.Struct, frozen=True):
    """A label of a result."""

    label: str
    score: float


class Result(msgspec.Struct, frozen=True):
    """Of a result, what is judged and shown."""

    uptime_ms: int
    backend: str
    model: str
    labels: list[Best]


class Rates(msgspec.Struct, frozen=True):
    """Of a report's rates, what is shown."""

    inferred: float


class Quantiles(msgspec.Struct, frozen=True):
    """Of a latency, what is judged, in milliseconds."""

    p95: float


class Latency(msgspec.Struct, frozen=True):
    """Of a report's latencies, what is judged; None before the first frame."""

    end_to_end: Quantiles | None


class Stats(msgspec.Struct, frozen=True):
    """Of a report, what is judged and shown."""

    uptime_ms: int
    backend: str
    fps: Rates
    latency_ms: Latency


class Versions(msgspec.Struct, frozen=True):
    """Of what a device is, its release."""

    edge_app: str


class Model(msgspec.Struct, frozen=True):
    """Of what a device runs, its name."""

    name: str


class Info(msgspec.Struct, frozen=True):
    """Of what a device is, what is shown."""

    versions: Versions
    model: Model


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be true. `backend` "": any. `result`: a result too, not only a report."""

    backend: str = ""
    result: bool = True
    slower_by: float = 1.5


@dataclass
class Heard:
    """What the broker passed on that the device said after `since_ms` of its monotonic clock."""

    since_ms: int
    trouble: str = ""  # with the broker itself
    status: str = ""
    info: Info | None = None
    result: Result | None = None
    stats: list[Stats] = field(default_factory=list)

    def absorb(self, topic: str, payload: bytes) -> None:
        """Take one message in. What is retained from before counts for `status` and `info` only."""
        kind = topic.rpartition("/")[2]
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            if kind == "status":
                self.status = payload.decode()
            elif kind == "info":
                self.info = msgspec.json.decode(payload, type=Info)
            elif kind == "result":
                result = msgspec.json.decode(payload, type=Result)
                self.result = result if result.uptime_ms >= self.since_ms else self.result
            elif kind == "stats":
                stats = msgspec.json.decode(payload, type=Stats)
                if stats.uptime_ms >= self.since_ms:
                    self.stats.append(stats)

    def p95_ms(self, backend: str) -> float | None:
        """The best end-to-end p95 of a window: what disturbs a measurement only adds to it."""
        known = [
            stats.latency_ms.end_to_end.p95
            for stats in self.stats
            if stats.latency_ms.end_to_end and stats.backend == (backend or self.backend())
        ]
        return min(known, default=None)

    def backend(self) -> str:
        """What computes now, or "" when nothing was heard."""
        if self.result is None:
            return self.stats[-1].backend if self.stats else ""
        newer = [stats for stats in self.stats if stats.uptime_ms > self.result.uptime_ms]
        return newer[-1].backend if newer else self.result.backend


def faults_of(heard: Heard, wanted: Wanted) -> list[str]:
    """Say what is missing in what was heard, most telling first; empty: nothing."""
    faults = [heard.trouble] if heard.trouble else []
    if heard.status != "online":
        faults.append(f"the broker says {heard.status or 'nothing'} of its status; allowed: online")
    if wanted.result and heard.result is None:
        faults.append("no fresh result reached the broker")
    if not any(stats.fps.inferred > 0 for stats in heard.stats):
        faults.append("no fresh report of an inference reached the broker")
    if heard.backend() and wanted.backend not in ("", heard.backend()):
        faults.append(f"{heard.backend()} computes; allowed: {wanted.backend}")
    return faults


def restarts_between(before: Unit, after: Unit) -> list[str]:
    """Say what systemd did in between that it does not do to a service that works."""
    if not after.active:
        return [f"the unit is {after.state}; allowed: active"]
    if after.pid != before.pid:
        return [
            f"it was restarted while it was watched: {after.restarts} restarts by systemd so far"
        ]
    return []


def run(
    config: Config,
    *,
    unit: str,
    wanted: Wanted,
    seconds: float,
    watch_s: float,
    baseline: Path | None,
    as_json: bool,
) -> int:
    """Watch for at least `watch_s` and at most `seconds` until all is as wanted; 0 when it is."""
    since_ms = time.monotonic_ns() // 1_000_000
    before = read_unit(unit) if unit else None
    heard = Heard(since_ms)
    if config.mqtt.url:
        now_s = time.monotonic()
        _listen(config, heard, wanted, now_s + max(seconds, watch_s), now_s + watch_s)
        faults = faults_of(heard, wanted)
    else:
        time.sleep(watch_s)
        faults = []
    after = read_unit(unit) if unit else None
    if before and after:
        faults = restarts_between(before, after) + faults
    p95_ms = heard.p95_ms(wanted.backend)
    if baseline is not None and p95_ms is not None and not faults:
        key = f"{heard.info.model.name if heard.info else ''} {heard.backend()}"
        faults += Baseline(baseline).judge(key, p95_ms, wanted.slower_by)
    _print(_report(config, heard, after, p95_ms, faults), as_json=as_json)
    return EXIT_UNAVAILABLE if faults else EXIT_OK


def _listen(config: Config, heard: Heard, wanted: Wanted, end_s: float, least_s: float) -> None:
    """Listen from now to `least_s`, and on to `end_s` while something is missing."""
    device = config.device.id
    broker = broker_of(config.mqtt, client_id=f"edge-app-health-{device}-{os.getpid()}")
    while time.monotonic() < end_s:
        try:
            with listening(broker, [f"{config.mqtt.base}/{device}/+"]) as arrived:
                heard.trouble = ""
                while time.monotonic() < end_s:
                    if time.monotonic() >= least_s and not faults_of(heard, wanted):
                        return
                    _absorb_next(arrived, heard)
        except EdgeAppError as error:  # a broker that is being restarted is tried again
            heard.trouble = str(error)
            time.sleep(_RETRY_S)


def _absorb_next(arrived: queue.SimpleQueue[Received | None], heard: Heard) -> None:
    with contextlib.suppress(queue.Empty):
        received = arrived.get(timeout=_POLL_S)
        if received is None:
            raise EdgeAppError("the broker closed the connection")
        heard.absorb(*received)


class Report(msgspec.Struct):
    """What `--json` prints. Null: not known."""

    device: str
    healthy: bool
    faults: list[str]
    release: str | None
    model: str | None
    backend: str | None
    fps: float | None
    p95_ms: float | None
    label: str | None
    unit: str | None
    restarts: int | None


def _report(
    config: Config, heard: Heard, unit: Unit | None, p95_ms: float | None, faults: list[str]
) -> Report:
    labels = heard.result.labels if heard.result else []
    return Report(
        device=config.device.id,
        healthy=not faults,
        faults=faults,
        release=heard.info.versions.edge_app if heard.info else None,
        model=heard.info.model.name if heard.info else None,
        backend=heard.backend() or None,
        fps=heard.stats[-1].fps.inferred if heard.stats else None,
        p95_ms=p95_ms,
        label=labels[0].label if labels else None,
        unit=unit.state if unit else None,
        restarts=unit.restarts if unit else None,
    )


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(report).decode())
        return
    known = {key: value for key, value in msgspec.to_builtins(report).items() if value is not None}
    for key in ("device", "release", "model", "backend", "fps", "p95_ms", "label", "restarts"):
        if key in known:
            print(f"{key:9} {known[key]}")
    for fault in report.faults:
        print(f"fault: {fault}", file=sys.stderr)
    print("healthy" if report.healthy else "not healthy")
