"""What is said to Home Assistant. Whether it understands is what tests/homeassistant shows."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from edge_app.domain import Delivery, Label, Message, Result, Timing, WallClock
from edge_app.publish import discovery, wire
from edge_app.publish.discovery import Device
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

TOPICS = wire.Topics("edge", "porch-cam")
DEVICE = Device("porch-cam", "Porch", "1.2.3", "aarch64", ("main",))
EVERYTHING = Abilities(*[True] * len(fields(Abilities)))
HEALTH = Health(
    window_s=10.0,
    backend="cpu",
    fps=Rates(30.0, 30.0, 0.4),
    frames=Frames(300, 300, 0, 0, 0),
    latency_ms={
        "preprocess": Percentiles(0.4, 0.5, 0.6, 1.1),
        "invoke": Percentiles(0.4, 0.5, 0.6, 1.1),
        "end_to_end": Percentiles(0.4, 0.5, 0.6, 1.1),
    },
    power=Power(),
    thermal_c=Thermal(),
    throttled=Throttled(),
    accelerator=Accelerator(),
    process=ProcessUse(92.0, None),
    spool=SpoolState(),
    mqtt=MqttState(1),
)
ALWAYS = {
    "backend",
    "connection",
    "fps",
    "frames_dropped",
    "inference",
    "label_main",
    "latency",
    "lost",
    "memory",
    "paused",
    "processor",
    "queued",
    "restart",
    "score_main",
    "self_test",
    "self_test_result",
    "snapshot",
    "take_snapshot_main",
    "threshold",
    "uptime",
}


def announced(device: Device = DEVICE, can: Abilities = EVERYTHING) -> Any:
    return json.loads(discovery.announcement("homeassistant", device, TOPICS, can).payload)


def test_one_retained_message_says_it_all() -> None:
    message = discovery.announcement("ha", DEVICE, TOPICS, Abilities())
    assert message.topic == "ha/device/porch-cam/config"
    assert (message.delivery, message.retain) == (Delivery.STATE, True)
    found = json.loads(message.payload)
    assert found["device"] == {
        "identifiers": ["edge-app_porch-cam"],
        "name": "porch-cam",
        "manufacturer": "edge-app",
        "model": "Camera appliance",
        "hw_version": "aarch64",
        "sw_version": "1.2.3",
        "suggested_area": "Porch",
    }
    assert found["origin"]["name"] == "edge-app"
    assert found["availability"] == [{"topic": "edge/porch-cam/status"}]
    # With the status topic as it is: Home Assistant's words for it are its defaults.
    assert (wire.ONLINE, wire.OFFLINE) == (b"online", b"offline")


def test_taking_it_back_is_an_empty_retained_message() -> None:
    message = discovery.removal("ha/device/porch-cam/config")
    assert message == Message(
        "ha/device/porch-cam/config", b"", Delivery.STATE, retain=True, schema=""
    )


def test_without_an_area_none_is_suggested() -> None:
    assert "suggested_area" not in announced(replace(DEVICE, area=""))["device"]


def test_a_plain_machine_has_no_entity_without_a_value() -> None:
    assert set(announced(can=Abilities())["components"]) == ALWAYS


@pytest.mark.parametrize(
    ("ability", "entities"),
    [
        ("power", "power energy energy_per_inference energy_per_inference_above_idle"),
        ("soc_temperature", "soc_temperature"),
        ("tpu_temperature", "tpu_temperature"),
        ("under_voltage", "under_voltage"),
        ("throttling", "throttled"),
        ("accelerator", "accelerator accelerator_problem fallbacks performance"),
    ],
)
def test_what_a_machine_can_has_its_entities(ability: str, entities: str) -> None:
    found = announced(can=replace(Abilities(), **{ability: True}))["components"]
    assert set(found) == ALWAYS | set(entities.split())


def test_abilities_are_those_a_report_shows() -> None:
    assert discovery.abilities(HEALTH, Abilities()) == Abilities()
    rich = replace(
        HEALTH,
        power=Power(source="ina226"),
        thermal_c=Thermal(soc=50.0, tpu=60.0),
        throttled=Throttled((), (), ("under_voltage", "arm_capped", "throttled")),
        accelerator=Accelerator(state="opening"),
    )
    assert discovery.abilities(rich, Abilities()) == EVERYTHING
    kernel = replace(HEALTH, throttled=Throttled((), None, ("under_voltage",)))
    assert discovery.abilities(kernel, Abilities()) == Abilities(under_voltage=True)


def test_a_sensor_that_falls_silent_keeps_its_entity() -> None:
    assert discovery.abilities(HEALTH, EVERYTHING) == EVERYTHING


def test_entities_are_known_again_by_ids_that_hang_on_device_and_camera_alone() -> None:
    found = announced()["components"]
    assert {key: entity["unique_id"] for key, entity in found.items()} == {
        key: f"edge-app_porch-cam_{key}" for key in found
    }
    two = announced(replace(DEVICE, cameras=("main", "gate")))["components"]
    for key in ("label_main", "score_main", "take_snapshot_main"):
        assert two[key]["unique_id"] == found[key]["unique_id"]


def test_several_cameras_are_told_apart() -> None:
    found = announced(replace(DEVICE, cameras=("main", "gate")))["components"]
    assert (found["label_main"]["name"], found["label_gate"]["name"]) == (
        "Label main",
        "Label gate",
    )
    assert "== 'gate'" in found["score_gate"]["value_template"]
    assert json.loads(found["take_snapshot_gate"]["payload_press"]) == {"camera": "gate"}
    assert announced()["components"]["label_main"]["name"] == "Label"


def test_what_is_picked_from_a_message_is_in_it() -> None:
    clock = WallClock(0, synced=True)
    result = Result("main", 1, 0, "classify", "m", "cpu", (Label(1, "a", 0.5),), _TIMING, "every")
    messages = {
        TOPICS.stats: json.loads(wire.stats_message(TOPICS, HEALTH, 0, clock, 30).payload),
        TOPICS.result: json.loads(wire.result_message(TOPICS, result, clock).payload),
    }
    looked_up = 0
    for key, entity in announced()["components"].items():
        pairs = [
            (entity.get("state_topic", TOPICS.stats), entity.get("value_template", "")),
            (entity.get("json_attributes_topic"), entity.get("json_attributes_template", "")),
        ]
        for topic, template in pairs:
            for path in re.findall(r"value_json((?:\.\w+)+)", template):
                if topic in messages:
                    assert has(messages[topic], path[1:].split(".")), (key, path)
                    looked_up += 1
    assert looked_up > 20


def test_the_documentation_lists_every_entity() -> None:
    text = (Path(__file__).parents[2] / "docs/home-assistant.md").read_text()
    rows = re.findall(r"^\| ([A-Z][^|]*) \| ([a-z]+) \| ([a-z, ]*)\|", text, re.MULTILINE)
    kinds = {"sensor": "sensor", "problem": "binary_sensor", "connectivity": "binary_sensor"}
    listed = {
        name: (kinds.get(kind, kind), where.strip().removesuffix(", off"), ", off" in where)
        for name, kind, where in rows
    }
    categories = {"config": "configuration", "diagnostic": "diagnostic", "": ""}
    assert listed == {
        entity["name"]: (
            entity["platform"],
            categories[entity.get("entity_category", "")],
            not entity.get("enabled_by_default", True),
        )
        for entity in announced()["components"].values()
    }


def has(record: Any, path: list[str]) -> bool:
    for name in path:
        if name not in record:
            return False
        record = record[name]
    return True


_TIMING = Timing(1.0, 1.0, 1.0, 1.0)
