"""Records to the bytes other programs read. docs/mqtt.md describes every payload.

Wall-clock time exists only here: inside, time is CLOCK_MONOTONIC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from edge_app.domain import Delivery, Event, Label, Message, Result, WallClock
from edge_app.stats import (
    Accelerator,
    Frames,
    Health,
    MqttState,
    Percentiles,
    Power,
    ProcessUse,
    Rates,
    SpoolState,
    Thermal,
    Throttled,
)

VERSION = 1
ONLINE, OFFLINE = b"online", b"offline"
_NS_PER_MS = 1_000_000

_encode = msgspec.json.Encoder().encode


class Stamped(msgspec.Struct, kw_only=True):
    """What every record begins with.

    `v`: the schema's version. `ts`: UTC, ISO 8601 with milliseconds. `clock_synced`: whether the
    clock is synchronised; `ts` is unreliable while it is false, None when nothing can
    tell. `uptime_ms`: milliseconds since boot that no clock change affects, of the same moment as
    `ts`.
    """

    v: int = VERSION
    ts: str
    clock_synced: bool | None
    uptime_ms: int


class TimingRecord(msgspec.Struct):
    """Milliseconds; see `domain.Timing`.

    `age`: from capture to the start of inference, `preprocess` and waiting included. `preprocess`:
    crop and resize, in the capture thread. `invoke`: inference. `postprocess`: decoding the
    outputs.
    """

    age: float
    preprocess: float
    invoke: float
    postprocess: float


class ResultRecord(Stamped, kw_only=True):
    """What one frame showed; `ts` and `uptime_ms` are the moment it was captured.

    `camera`: its name in the configuration. `frame`: its number since the camera was opened; gaps
    are frames that were not published. `task`: what was asked of the model. `model`: its name.
    `backend`: what really computed this answer: `cpu` or `edgetpu`. `trigger`: `change`: another
    label leads; `heartbeat`: nothing else for `publish.heartbeat_s`; `every`: every frame is
    published. `labels`: at most `top_k`, best first, each with a score of at least `threshold`; may
    be empty. `timing_ms`: where its time went, in milliseconds.
    """

    camera: str
    frame: int
    task: str
    model: str
    backend: str
    trigger: str
    labels: tuple[Label, ...]
    timing_ms: TimingRecord


class EventRecord(Stamped, kw_only=True):
    """Something that happened.

    `event`: its kind, from the table below. `message`: the same in a sentence. `details`: its
    particulars, by kind.
    """

    event: str
    message: str
    details: dict[str, str | int | float | None]


class StatsRecord(Stamped, kw_only=True):
    """How the appliance fares over a window; None is "not known".

    `window_s`: its length. `backend`: what computes now. `latency_ms`: by stage, from every frame,
    not from samples: `preprocess`, `invoke` and `end_to_end` (from capture to the message handed
    over); None in a window without frames.
    """

    window_s: float
    backend: str
    fps: Rates
    frames: Frames
    latency_ms: dict[str, Percentiles | None]
    power: Power
    thermal_c: Thermal
    throttled: Throttled
    accelerator: Accelerator
    process: ProcessUse
    spool: SpoolState
    mqtt: MqttState


class ReplyRecord(Stamped, kw_only=True):
    """The answer to a command.

    `command`: which one. `ok`: whether it was carried out. `reason`: why it was refused. `result`:
    by command, see below; None when it was refused.
    """

    command: str
    ok: bool
    reason: str | None
    result: object


class Topics:
    """The topics of one device: `BASE/ID/KIND`; commands come in on `commands` and their name.

    Commands have a tree of their own, so that a broker's rules can keep devices from writing there.
    """

    def __init__(self, base: str, device_id: str) -> None:
        prefix = f"{base}/{device_id}/"
        self.status = prefix + "status"
        self.info = prefix + "info"
        self.result = prefix + "result"
        self.event = prefix + "event"
        self.stats = prefix + "stats"
        self.snapshot = prefix + "snapshot"
        self.reply = prefix + "reply"
        self.commands = f"{base}-cmd/{device_id}/"


def result_message(topics: Topics, result: Result, clock: WallClock) -> Message:
    """Encode what was seen."""
    timing = result.timing
    record = ResultRecord(
        **_stamp(result.captured_ns, clock),
        camera=result.camera,
        frame=result.frame,
        task=result.task,
        model=result.model,
        backend=result.backend,
        trigger=result.trigger,
        labels=result.labels,
        timing_ms=TimingRecord(
            age=round(timing.age_ms, 2),
            preprocess=round(timing.preprocess_ms, 2),
            invoke=round(timing.invoke_ms, 2),
            postprocess=round(timing.postprocess_ms, 2),
        ),
    )
    return Message(topics.result, _encode(record), Delivery.SPOOLED)


def event_message(topics: Topics, event: Event, now_ns: int, clock: WallClock) -> Message:
    """Encode something that happened at `now_ns`."""
    record = EventRecord(
        **_stamp(now_ns, clock),
        event=event.kind,
        message=event.message,
        details=dict(event.details),
    )
    return Message(topics.event, _encode(record), Delivery.SPOOLED)


def stats_message(
    topics: Topics, health: Health, now_ns: int, clock: WallClock, expiry_s: int
) -> Message:
    """Encode the appliance's state at `now_ns`; a broker may forget it after `expiry_s`."""
    record = StatsRecord(
        **_stamp(now_ns, clock),
        window_s=round(health.window_s, 3),
        backend=health.backend,
        fps=health.fps,
        frames=health.frames,
        latency_ms=dict(health.latency_ms),
        power=health.power,
        thermal_c=health.thermal_c,
        throttled=health.throttled,
        accelerator=health.accelerator,
        process=health.process,
        spool=health.spool,
        mqtt=health.mqtt,
    )
    payload = _encode(record)
    return Message(topics.stats, payload, Delivery.VOLATILE, retain=True, expiry_s=expiry_s)


def info_message(topics: Topics, info: object, now_ns: int, clock: WallClock) -> Message:
    """Encode what this appliance is; `info` is any record whose fields say so."""
    header = _stamp(now_ns, clock)
    payload = _encode({"v": VERSION, **header, **msgspec.to_builtins(info)})
    return Message(topics.info, payload, Delivery.STATE, retain=True)


def reply_message(
    topic: str,
    now_ns: int,
    clock: WallClock,
    *,
    command: str,
    result: object,
    reason: str = "",
    correlation: bytes = b"",
) -> Message:
    """Encode the answer to a command: its `result`, a record, or with a `reason` the refusal."""
    record = ReplyRecord(
        **_stamp(now_ns, clock),
        command=command,
        ok=not reason,
        reason=reason or None,
        result=None if reason else result,
    )
    return Message(topic, _encode(record), Delivery.REPLY, correlation=correlation)


def snapshot_message(topics: Topics, jpeg: bytes) -> Message:
    """Wrap a picture that is news for a minute."""
    return Message(topics.snapshot, jpeg, Delivery.VOLATILE, expiry_s=60, content_type="image/jpeg")


def status_message(topics: Topics, *, online: bool) -> Message:
    """Say whether the appliance is there."""
    payload = ONLINE if online else OFFLINE
    return Message(topics.status, payload, Delivery.STATE, retain=True, content_type="text/plain")


def with_seq(payload: bytes, seq: int) -> bytes:
    """Return the JSON object `payload` with `seq` put in front."""
    return b'{"seq":%d,' % seq + payload[1:]


def utc(monotonic_ns: int, clock: WallClock) -> str:
    """Return that moment as ISO 8601 with milliseconds."""
    moment = datetime.fromtimestamp((monotonic_ns + clock.utc_minus_monotonic_ns) / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamp(monotonic_ns: int, clock: WallClock) -> dict[str, Any]:
    return {
        "ts": utc(monotonic_ns, clock),
        "clock_synced": clock.synced,
        "uptime_ms": monotonic_ns // _NS_PER_MS,
    }
