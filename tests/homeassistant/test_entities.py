"""Home Assistant understands every entity: the announcement of a machine that can tell everything.

No machine at hand can, so here its messages are made up, by the same functions as the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from typing import Any

import pytest

from edge_app.domain import Delivery, Label, Message, Result, Timing, WallClock
from edge_app.publish import discovery, wire
from edge_app.publish.discovery import Device
from edge_app.publish.link import Broker
from edge_app.publish.mqtt import MqttPublisher
from edge_app.publish.spool import Spool
from edge_app.publish.vitals import Abilities
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
from tests.brokers import Mosquitto
from tests.homeassistant.hass import HomeAssistant, until

TOPICS = wire.Topics("edge", "porch-cam")
DEVICE = Device("porch-cam", "Porch", "1.2.3", "aarch64", ("main",))
EVERYTHING = Abilities(*[True] * len(fields(Abilities)))
CLOCK = WallClock(1_795_372_201_123_000_000, synced=True)
UPTIME_NS = 5_400_000_000_000
TIMING = Timing(12.0, 0.4, 4.5, 0.1)
P95 = Percentiles(5.0, 9.5, 10.0, 12.0)
HEALTH = Health(
    window_s=10.0,
    backend="cpu",
    fps=Rates(30.0, 29.5, 0.4),
    frames=Frames(300, 295, 5, 0, 0),
    latency_ms={"preprocess": P95, "invoke": P95, "end_to_end": P95},
    power=Power(3.1, "ina226", 31.0, 7200.0, 2.5, 103.3, 20.0),
    thermal_c=Thermal(51.2, 62.5),
    throttled=Throttled(("under_voltage",), ("under_voltage",), ("under_voltage", "throttled")),
    accelerator=Accelerator(3, 2, "backing_off", cause="no Edge TPU is attached"),
    process=ProcessUse(92.4, 31.0),
    spool=SpoolState(queued=7, bytes=900, dropped=2),
    mqtt=MqttState(1),
)
SELF_TEST = {
    "command": "selftest",
    "ok": True,
    "result": {
        "passed": False,
        "checks": [
            {"check": "engine", "ok": True, "message": "fine"},
            {"check": "camera main", "ok": False, "message": "no frame for 6.3 s"},
        ],
    },
}
INFO: dict[str, dict[str, object]] = {
    "settings": {"paused": False, "threshold": 0.35, "performance": "high"}
}

# id: state, category, device class, unit, state class
PLAIN = (None, None, None, None)
EXPECTED = {
    "image.porch_cam_snapshot": ("unknown", *PLAIN),
    "sensor.porch_cam_label": ("macaw", *PLAIN),
    "sensor.porch_cam_score": ("91.2", None, None, "%", "measurement"),
    "button.porch_cam_take_snapshot": ("unknown", *PLAIN),
    "switch.porch_cam_paused": ("off", *PLAIN),
    "number.porch_cam_threshold": ("0.35", "config", None, None, None),
    "select.porch_cam_performance": ("high", "config", None, None, None),
    "button.porch_cam_self_test": ("unknown", "diagnostic", None, None, None),
    "binary_sensor.porch_cam_self_test_result": ("on", "diagnostic", "problem", None, None),
    "button.porch_cam_restart": ("unknown", "config", "restart", None, None),
    "sensor.porch_cam_frame_rate": ("29.5", "diagnostic", None, "fps", "measurement"),
    "sensor.porch_cam_latency_p95": ("9.5", "diagnostic", "duration", "ms", "measurement"),
    "sensor.porch_cam_backend": ("cpu", "diagnostic", "enum", None, None),
    "sensor.porch_cam_accelerator": ("backing_off", "diagnostic", "enum", None, None),
    "binary_sensor.porch_cam_accelerator_problem": ("on", "diagnostic", "problem", None, None),
    "sensor.porch_cam_fallbacks": ("3", "diagnostic", None, None, "total_increasing"),
    "sensor.porch_cam_power": ("3.1", None, "power", "W", "measurement"),
    "sensor.porch_cam_energy": ("2.0", None, "energy", "Wh", "total_increasing"),
    "sensor.porch_cam_energy_per_inference": ("103.3", "diagnostic", None, "mJ", "measurement"),
    "sensor.porch_cam_processor_temperature": (
        *("51.2", "diagnostic", "temperature", "°C", "measurement"),
    ),
    "sensor.porch_cam_edge_tpu_temperature": (
        *("62.5", "diagnostic", "temperature", "°C", "measurement"),
    ),
    "binary_sensor.porch_cam_under_voltage": ("on", "diagnostic", "problem", None, None),
    "binary_sensor.porch_cam_throttled": ("off", "diagnostic", "problem", None, None),
    "binary_sensor.porch_cam_connection": ("on", "diagnostic", "connectivity", None, None),
    "sensor.porch_cam_uptime": ("1.5", "diagnostic", "duration", "h", None),
    "sensor.porch_cam_messages_waiting": ("7", "diagnostic", None, None, "measurement"),
    "sensor.porch_cam_messages_lost": ("2", "diagnostic", None, None, "total_increasing"),
}
OFF_AT_FIRST = {
    "sensor.porch_cam_inference_p95": ("9.5", "diagnostic", "duration", "ms", "measurement"),
    "sensor.porch_cam_frames_dropped": ("5", "diagnostic", None, None, "measurement"),
    "sensor.porch_cam_energy_per_inference_above_idle": (
        *("20.0", "diagnostic", None, "mJ", "measurement"),
    ),
    "sensor.porch_cam_memory": ("92.4", "diagnostic", "data_size", "MB", "measurement"),
    "sensor.porch_cam_processor_use": ("31.0", "diagnostic", None, "%", "measurement"),
}
NOT_KNOWN = [
    "sensor.porch_cam_latency_p95",
    "sensor.porch_cam_power",
    "sensor.porch_cam_energy",
    "sensor.porch_cam_energy_per_inference",
    "sensor.porch_cam_processor_temperature",
    "sensor.porch_cam_edge_tpu_temperature",
    "binary_sensor.porch_cam_under_voltage",
    "binary_sensor.porch_cam_throttled",
]


@pytest.fixture
def publisher(lasting_mosquitto: Mosquitto, lasting_home: HomeAssistant) -> Iterator[MqttPublisher]:
    """Speak for the device, which is not there any more afterwards."""
    online, offline = (wire.status_message(TOPICS, online=online) for online in (True, False))
    broker = Broker("127.0.0.1", lasting_mosquitto.port, "porch-cam")
    with closing(MqttPublisher(broker, Spool(1_000_000), online, offline)) as publisher:
        until(lambda: publisher.state()[1].connects)  # statistics are not kept for later
        yield publisher
        publisher.offer(discovery.removal(discovery.discovery_topic("homeassistant", DEVICE.id)))
        until(lambda: not lasting_home.devices())


def result(camera: str, *labels: Label) -> Message:
    shown = Result(camera, 1, UPTIME_NS, "classify", "m", "cpu", labels, TIMING, "change")
    return wire.result_message(TOPICS, shown, CLOCK)


def announce(
    publisher: MqttPublisher, device: Device, can: Abilities, health: Health = HEALTH
) -> None:
    publisher.offer(discovery.announcement("homeassistant", device, TOPICS, can))
    publisher.offer(wire.info_message(TOPICS, INFO, UPTIME_NS, CLOCK))
    publisher.offer(wire.stats_message(TOPICS, health, UPTIME_NS, CLOCK, 3600))
    assert publisher.drain(10)


def described(home: HomeAssistant, entity: str) -> tuple[Any, ...]:
    state = home.states()[entity]
    attributes = state["attributes"]
    return (
        state["state"],
        home.registered()[entity]["entity_category"],
        attributes.get("device_class"),
        attributes.get("unit_of_measurement"),
        attributes.get("state_class"),
    )


def test_every_entity_is_understood(lasting_home: HomeAssistant, publisher: MqttPublisher) -> None:
    announce(publisher, DEVICE, EVERYTHING)
    everything = EXPECTED | OFF_AT_FIRST
    until(lambda: len(lasting_home.registered()) >= len(everything))
    assert set(lasting_home.registered()) == set(everything)
    disabled = {id_ for id_, entry in lasting_home.registered().items() if entry["disabled_by"]}
    assert disabled == set(OFF_AT_FIRST)
    (device,) = lasting_home.devices()
    about = (device["name"], device["area_id"], device["sw_version"], device["hw_version"])
    assert about == ("porch-cam", "porch", "1.2.3", "aarch64")
    for entity in disabled:
        lasting_home.enable(entity)
    until(lambda: set(lasting_home.states()) >= set(everything))
    # What is not retained has to be said when somebody listens.
    until(lambda: lasting_home.state("sensor.porch_cam_frame_rate") == "29.5")
    publisher.offer(Message(TOPICS.reply, json.dumps(SELF_TEST).encode(), Delivery.REPLY))
    publisher.offer(result("main", Label(88, "macaw", 0.9123), Label(5, "kite", 0.4)))
    publisher.offer(result("another", Label(1, "not ours", 1.0)))
    until(lambda: lasting_home.state("sensor.porch_cam_label") == "macaw")
    assert {entity: described(lasting_home, entity) for entity in everything} == everything
    states = lasting_home.states()
    labels = states["sensor.porch_cam_label"]["attributes"]["labels"]
    assert [label["label"] for label in labels] == ["macaw", "kite"]
    assert states["sensor.porch_cam_power"]["attributes"]["source"] == "ina226"
    problem = states["binary_sensor.porch_cam_accelerator_problem"]
    assert problem["attributes"]["cause"] == "no Edge TPU is attached"
    (failed,) = states["binary_sensor.porch_cam_self_test_result"]["attributes"]["failed"]
    assert failed["check"] == "camera main"
    assert lasting_home.complaints() == []


def test_what_nobody_knows_is_unknown(
    lasting_home: HomeAssistant, publisher: MqttPublisher
) -> None:
    announce(publisher, DEVICE, EVERYTHING, ignorant())
    until(lambda: lasting_home.state("sensor.porch_cam_frame_rate") == "0.0")
    states = lasting_home.states()
    for entity in NOT_KNOWN:
        assert states[entity]["state"] == "unknown", entity
    assert states["binary_sensor.porch_cam_accelerator_problem"]["state"] == "off"
    assert lasting_home.complaints() == []


def ignorant() -> Health:
    return replace(
        HEALTH,
        fps=Rates(0.0, 0.0, 0.0),
        latency_ms={"preprocess": None, "invoke": None, "end_to_end": None},
        power=Power(),
        thermal_c=Thermal(),
        throttled=Throttled(),
        accelerator=Accelerator(),
        process=ProcessUse(None, None),
    )


def test_cameras_do_not_mix(lasting_home: HomeAssistant, publisher: MqttPublisher) -> None:
    announce(publisher, replace(DEVICE, cameras=("front", "back")), Abilities())
    until(lambda: lasting_home.state("sensor.porch_cam_frame_rate") == "29.5")
    publisher.offer(result("front", Label(88, "macaw", 0.9)))
    publisher.offer(result("back"))
    until(lambda: lasting_home.state("sensor.porch_cam_label_back") == "nothing")
    states = lasting_home.states()
    assert states["sensor.porch_cam_score_back"]["state"] == "unknown"
    front = states["sensor.porch_cam_label_front"]
    assert (front["state"], front["attributes"]["labels"][0]["index"]) == ("macaw", 88)
    assert states["sensor.porch_cam_score_front"]["state"] == "90.0"
    assert {"button.porch_cam_take_snapshot_front", "button.porch_cam_take_snapshot_back"} < set(
        states
    )
    assert lasting_home.complaints() == []


def test_nothing_is_seen_while_paused(
    lasting_home: HomeAssistant, publisher: MqttPublisher
) -> None:
    announce(publisher, DEVICE, Abilities())
    until(lambda: lasting_home.state("sensor.porch_cam_frame_rate") == "29.5")
    publisher.offer(result("main", Label(88, "macaw", 0.9)))
    until(lambda: lasting_home.state("sensor.porch_cam_label") == "macaw")
    paused = {"settings": {**INFO["settings"], "paused": True}}
    publisher.offer(wire.info_message(TOPICS, paused, UPTIME_NS, CLOCK))
    until(lambda: lasting_home.state("sensor.porch_cam_label") == "unavailable")
    assert lasting_home.state("switch.porch_cam_paused") == "on"
    assert lasting_home.state("sensor.porch_cam_frame_rate") == "29.5"


def test_what_turns_out_to_be_there_is_added(
    lasting_home: HomeAssistant, publisher: MqttPublisher
) -> None:
    announce(publisher, DEVICE, Abilities())
    until(lambda: lasting_home.state("sensor.porch_cam_frame_rate") == "29.5")
    assert "sensor.porch_cam_power" not in lasting_home.registered()
    announce(publisher, DEVICE, Abilities(power=True))
    until(lambda: lasting_home.state("sensor.porch_cam_power") == "3.1")
