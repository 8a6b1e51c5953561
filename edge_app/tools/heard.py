"""What a device says at the broker, as far as its health shows in it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import msgspec


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


class Settings(msgspec.Struct, frozen=True):
    """Of what can be set while it runs, what explains silence."""

    paused: bool = False


class Info(msgspec.Struct, frozen=True):
    """Of what a device is, what is judged and shown."""

    versions: Versions
    model: Model
    settings: Settings = Settings()


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
