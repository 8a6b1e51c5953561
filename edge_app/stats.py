"""What the appliance measures of itself: the records of a window, which `stats` publishes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of every frame in a window, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over a window.

    `captured`: frames read from the cameras. `inferred`: frames the model answered. `published`:
    results handed to the publisher.
    """

    captured: float
    inferred: float
    published: float


@dataclass(frozen=True, slots=True)
class Frames:
    """Counts over a window.

    `captured`: read from the cameras. `inferred`: answered by the model. `dropped`: overwritten by
    a newer one before the engine was free. `gated`: left out on purpose: paused, or more than `set`
    allows. `corrupt`: could not be decoded.
    """

    captured: int
    inferred: int
    dropped: int
    gated: int
    corrupt: int


@dataclass(frozen=True, slots=True)
class Power:
    """What was measured over a window, by what; all None without a sensor.

    `watts`: the mean; a window without a reading has the newest. `source`: what measured it (see
    power.md), never None beside a number. `energy_j`: taken in this window; None when a part of it
    was not measured. `energy_total_j`: measured since `source` was first read; starts at 0 with the
    process, and with another source. `idle_watts`: the mean of the newest window without an
    inference that followed another such window. `mj_per_inference`: gross: everything taken in the
    window, divided by the frames inferred. `mj_per_inference_above_idle`: the same, counting only
    what is above `idle_watts`; None until idle was measured, and when the difference is not
    positive.
    """

    watts: float | None = None
    source: str | None = None
    energy_j: float | None = None
    energy_total_j: float | None = None
    idle_watts: float | None = None
    mj_per_inference: float | None = None
    mj_per_inference_above_idle: float | None = None


@dataclass(frozen=True, slots=True)
class Thermal:
    """Temperatures in degrees Celsius.

    `soc`: the processor's thermal zone, as the kernel reports it. `tpu`: the hottest PCIe Edge TPU;
    a USB one tells no temperature.
    """

    soc: float | None = None
    tpu: float | None = None


@dataclass(frozen=True, slots=True)
class Throttled:
    """Why the processor runs slower than it could; None when nothing can tell.

    `now`: those of `known` that hold. `since_boot`: those that held since boot. `known`: the
    conditions that can be told at all: `under_voltage`, `arm_capped`, `throttled` and
    `soft_temp_limit` by the firmware, `under_voltage` alone by the kernel; another one may hold.
    """

    now: tuple[str, ...] | None = None
    since_boot: tuple[str, ...] | None = None
    known: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How the accelerator fares.

    `fallbacks`: how often the CPU had to take over since the start. `promotions`: how often it was
    put to service. `state`: `none` when none is in use, and none is looked for; else `opening`,
    `canary`, `promoted`, `healthy` or `backing_off`, see accelerator.md. `canaries`: runs on
    pictures with a known answer that were right. `baseline_p95_ms`: the best p95 of its last 256
    runs so far; None until there were so many. `p95_ms`: of its last 256 runs. `cause`: why the CPU
    answers in its place.
    """

    fallbacks: int = 0
    promotions: int = 0
    state: str = "none"
    canaries: int = 0
    baseline_p95_ms: float | None = None
    p95_ms: float | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What this process takes.

    `rss_mb`: resident memory. `cpu_percent`: processor time as a share of one core.
    """

    rss_mb: float | None
    cpu_percent: float | None


@dataclass(frozen=True, slots=True)
class SpoolState:
    """Messages waiting for the broker.

    `queued`: how many. `bytes`: what they take, in memory and on the disk. `dropped`: given up
    since the start: the oldest of too many, those the broker refused, and those lost with a disk.
    """

    queued: int = 0
    bytes: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class MqttState:
    """How the connection to the broker fares.

    `connects`: accepted since the process started; one is normal. `dropped`: messages to this
    device that were thrown away unread, because they were too many at once or not to be understood.
    `trouble`: why nothing can be delivered now, or what the broker refused on this connection.
    """

    connects: int = 0
    dropped: int = 0
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How the appliance fared over the last window."""

    window_s: float
    backend: str
    fps: Rates
    frames: Frames
    latency_ms: Mapping[str, Percentiles | None]
    power: Power
    thermal_c: Thermal
    throttled: Throttled
    accelerator: Accelerator
    process: ProcessUse
    spool: SpoolState
    mqtt: MqttState
