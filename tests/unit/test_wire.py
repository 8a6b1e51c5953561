"""The bytes other programs read, key by key as documented."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from edge_app.domain import Delivery, Event, Label, Message, Result, Timing, WallClock
from edge_app.publish import wire
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

TOPICS = wire.Topics("edge", "porch")
# 2026-11-22T18:30:01.123Z is 1 795 372 201.123 s after 1970; the monotonic clock shows 123.456 s.
NOW_NS = 123_456_789_000
CLOCK = WallClock(1_795_372_201_123_000_000 - NOW_NS, synced=True)


def body(message: Message) -> Any:
    return json.loads(message.payload)


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "camera": "main",
        "frame": 90210,
        "captured_ns": NOW_NS,
        "task": "classify",
        "model": "m",
        "backend": "cpu",
        "labels": (Label(88, "macaw", 0.91), Label(5, 'a "quoted" \u00e9', 0.5)),
        "timing": Timing(12.1234, 0.4, 4.5, 0.1),
        "trigger": "change",
    }
    return Result(**values | changes)


def test_topics() -> None:
    kinds = ("status", "info", "result", "event", "stats", "snapshot", "reply")
    found = {name: getattr(TOPICS, name) for name in kinds}
    assert found == {name: f"edge/porch/{name}" for name in found}
    assert TOPICS.commands == "edge-cmd/porch/"


def test_result() -> None:
    message = wire.result_message(TOPICS, result(), CLOCK)
    assert (message.topic, message.delivery) == ("edge/porch/result", Delivery.SPOOLED)
    assert not message.retain
    assert body(message) == {
        "v": 1,
        "ts": "2026-11-22T18:30:01.123Z",
        "clock_synced": True,
        "uptime_ms": 123456,
        "camera": "main",
        "frame": 90210,
        "task": "classify",
        "model": "m",
        "backend": "cpu",
        "trigger": "change",
        "labels": [
            {"index": 88, "label": "macaw", "score": 0.91},
            {"index": 5, "label": 'a "quoted" \u00e9', "score": 0.5},
        ],
        "timing_ms": {"age": 12.12, "preprocess": 0.4, "invoke": 4.5, "postprocess": 0.1},
    }
    assert b"\n" not in message.payload


def test_the_number_is_put_in_front() -> None:
    message = wire.result_message(TOPICS, result(labels=()), CLOCK)
    numbered = json.loads(wire.with_seq(message.payload, 1812))
    assert numbered == {"seq": 1812, **body(message)}
    assert numbered["labels"] == []


@pytest.mark.parametrize(
    ("utc_ns", "ts"),
    [(0, "1970-01-01T00:00:00.000Z"), (1_000_000_000 * 4_102_444_800, "2100-01-01T00:00:00.000Z")],
    ids=["clock-never-set", "far-away"],
)
def test_any_clock_gives_a_time_stamp(utc_ns: int, ts: str) -> None:
    clock = WallClock(utc_ns - NOW_NS, synced=None)
    found = body(wire.result_message(TOPICS, result(), clock))
    assert (found["ts"], found["clock_synced"]) == (ts, None)


def test_event() -> None:
    event = Event("fallback", "the accelerator is gone", {"reason": "timeout", "after_s": 2.5})
    message = wire.event_message(TOPICS, event, NOW_NS, CLOCK)
    assert (message.topic, message.delivery) == ("edge/porch/event", Delivery.SPOOLED)
    assert body(message)["event"] == "fallback"
    assert body(message)["details"] == {"reason": "timeout", "after_s": 2.5}


def test_stats_unknown_is_null() -> None:
    health = Health(
        window_s=10.00049,
        backend="cpu",
        fps=Rates(30.0, 30.0, 0.4),
        frames=Frames(300, 300, 0, 0, 0),
        latency_ms={"preprocess": Percentiles(0.4, 0.5, 0.6, 1.1), "invoke": None},
        power=Power(),
        thermal_c=Thermal(51.2),
        throttled=Throttled(),
        accelerator=Accelerator(),
        process=ProcessUse(92.0, None),
        spool=SpoolState(),
        mqtt=MqttState(1),
    )
    message = wire.stats_message(TOPICS, health, NOW_NS, CLOCK, expiry_s=30)
    assert (message.topic, message.delivery) == ("edge/porch/stats", Delivery.VOLATILE)
    assert (message.retain, message.expiry_s) == (True, 30)
    found = body(message)
    assert found["window_s"] == 10.0
    assert found["fps"] == {"captured": 30.0, "inferred": 30.0, "published": 0.4}
    assert found["frames"] == asdict(health.frames)
    assert found["latency_ms"] == {
        "preprocess": {"p50": 0.4, "p95": 0.5, "p99": 0.6, "max": 1.1},
        "invoke": None,
    }
    assert found["power"] == asdict(Power())
    assert set(found["power"].values()) == {None}
    assert {"watts", "source", "energy_j", "mj_per_inference"} <= found["power"].keys()
    assert found["thermal_c"] == {"soc": 51.2, "tpu": None}
    assert found["throttled"] == {"now": None, "since_boot": None, "known": None}
    assert found["accelerator"] == {
        "fallbacks": 0,
        "promotions": 0,
        "state": "none",
        "canaries": 0,
        "baseline_p95_ms": None,
        "p95_ms": None,
        "cause": None,
    }
    assert found["process"] == {"rss_mb": 92.0, "cpu_percent": None}
    assert found["spool"] == {"queued": 0, "bytes": 0, "dropped": 0}
    assert found["mqtt"] == {"connects": 1, "dropped": 0, "trouble": None}


def test_status_and_info_are_retained_states() -> None:
    online, offline = (wire.status_message(TOPICS, online=online) for online in (True, False))
    assert (online.payload, offline.payload) == (b"online", b"offline")
    info = wire.info_message(TOPICS, SpoolState(1, 2, 3), NOW_NS, CLOCK)
    for message in (online, offline, info):
        assert (message.delivery, message.retain) == (Delivery.STATE, True)
    assert body(info) == {
        "v": 1,
        "ts": "2026-11-22T18:30:01.123Z",
        "clock_synced": True,
        "uptime_ms": 123456,
        "queued": 1,
        "bytes": 2,
        "dropped": 3,
    }
