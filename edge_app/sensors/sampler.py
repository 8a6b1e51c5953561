"""One thread that asks the slow sensors, so that the loop only ever looks at what it found."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from edge_app.domain import Event
from edge_app.sensors.energy import MAX_GAP_S, Energy, EnergyMeter
from edge_app.sensors.power import RETRY_S, Choice, PowerSensor
from edge_app.sensors.thermal import read_thermal
from edge_app.sensors.throttle import Episodes, ThrottleSensor
from edge_app.sensors.vcgencmd import Vcgencmd
from edge_app.stats import Thermal, Throttled

log = logging.getLogger(__name__)

PERIOD_S = 1.0
_JOIN_S = 0.5  # nothing is lost with it, and SIGTERM leaves little time


@dataclass(frozen=True, slots=True)
class Sample:
    """What the sensors said at one moment; unknown is None."""

    energy: Energy | None = None
    thermal: Thermal = field(default_factory=Thermal)
    throttled: Throttled = field(default_factory=Throttled)


class Sampler:
    """Samples from `with` to its end.

    A sensor may start a program (`vcgencmd`) or wait for a device on a bus: never in the loop.
    """

    def __init__(
        self,
        choice: Choice = "auto",
        *,
        sysfs_root: Path = Path("/sys"),
        vcgencmd: str = "vcgencmd",
        period_s: float = PERIOD_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._sysfs_root = sysfs_root
        self._period_s = period_s
        self._power = PowerSensor(choice, sysfs_root, vcgencmd, retry_s)
        self._throttle = ThrottleSensor(Vcgencmd("get_throttled", vcgencmd, retry_s), sysfs_root)
        self._meter = EnergyMeter()
        self._episodes = Episodes()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()  # a few a minute at most
        self._newest: tuple[int, Sample] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensors", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("sensors: one has not answered for %g s; left behind", _JOIN_S)

    def newest(self, now_ns: int) -> Sample:
        """Return the newest sample; an empty one when it is older than MAX_GAP_S (monotonic)."""
        return self.fresh(now_ns) or Sample()

    def fresh(self, now_ns: int) -> Sample | None:
        """Return the newest sample; None when it is older than MAX_GAP_S (monotonic)."""
        if self._newest is None or now_ns - self._newest[0] > MAX_GAP_S * 1e9:
            return None
        return self._newest[1]

    def events(self) -> list[Event]:
        """Return what happened since this was last called."""
        found = []
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def _run(self) -> None:
        while True:
            started_s = time.monotonic()
            reading = self._power.read(started_s)
            energy = self._meter.add(time.monotonic_ns(), reading)
            sample = Sample(energy, read_thermal(self._sysfs_root), self._throttle.read())
            self._newest = (time.monotonic_ns(), sample)
            if event := self._episodes.note(sample.throttled, started_s):
                log.warning("%s", event.message, extra=event.fields())
                self._events.put(event)
            if self._closing.wait(max(0.0, started_s + self._period_s - time.monotonic())):
                return
