"""`edge-app health`: does the appliance on this machine work, as systemd and the broker see it?

For whoever has just changed it: provisioning takes a release back when this fails.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_app.config import Config
from edge_app.errors import EXIT_OK, EXIT_UNAVAILABLE, EdgeAppError
from edge_app.publish.listen import Received, listening
from edge_app.publishers import broker_of
from edge_app.tools.baseline import Baseline
from edge_app.tools.heard import Heard
from edge_app.tools.unit import Unit, read_unit

_POLL_S = 0.25
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be true. `backend` "": any. `result`: a result too, not only a report."""

    backend: str = ""
    result: bool = True
    slower_by: float = 2.0


def faults_of(heard: Heard, wanted: Wanted) -> list[str]:
    """Say what is missing in what was heard, most telling first; empty: nothing."""
    if heard.trouble:
        return [heard.trouble]
    if heard.info and heard.info.settings.paused:
        return ["it is paused by a command, and infers nothing until it is told to resume"]
    faults = []
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
        print(
            f"listening to {config.device.id} for up to {max(seconds, watch_s):.0f} s",
            file=sys.stderr,
        )
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
        faults += Baseline(baseline).judge(_comparable(config, heard), p95_ms, wanted.slower_by)
    _print(_report(config, heard, after, p95_ms, faults), as_json=as_json)
    return EXIT_UNAVAILABLE if faults else EXIT_OK


def _comparable(config: Config, heard: Heard) -> str:
    """Name what a latency depends on: a device that was given other work has no baseline for it."""
    model = heard.info.model.name if heard.info else config.model.name
    cameras = (
        f"{camera.size_px[0]}x{camera.size_px[1]}@{camera.fps:g}"
        for _, camera in sorted(config.camera.items())
    )
    return " ".join((model, heard.backend(), *cameras))


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
