"""One retained message that makes the appliance a device of Home Assistant. Pure.

Home Assistant calls this device-based MQTT discovery. docs/home-assistant.md is for users.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from edge_app.domain import Delivery, Message
from edge_app.publish.entities import entities
from edge_app.publish.vitals import Abilities
from edge_app.publish.wire import Topics
from edge_app.stats import Health

DEFAULT_PREFIX = "homeassistant"
BIRTH_TOPIC = "homeassistant/status"  # whatever the prefix: Home Assistant's own setting
BIRTH = b"online"  # it has started, or its connection is back


@dataclass(frozen=True, slots=True)
class Device:
    """Who announces itself. `area`: where it is, may be empty; `machine`: its processor's kind."""

    id: str
    area: str
    version: str
    machine: str
    cameras: tuple[str, ...]


def discovery_topic(prefix: str, device_id: str) -> str:
    """Return where Home Assistant looks for a device."""
    return f"{prefix}/device/{device_id}/config"


def announcement(prefix: str, device: Device, topics: Topics, can: Abilities) -> Message:
    """Say what the device is, and what it has to show and to press."""
    identity = f"edge-app_{device.id}"  # Home Assistant's memory of us hangs on it: never change it
    payload = {
        "device": _about(device, identity),
        "origin": {"name": "edge-app", "sw_version": device.version},
        "availability": [{"topic": topics.status}],
        "state_topic": topics.stats,
        "components": {
            key: replace(entity, unique_id=f"{identity}_{key}")
            for key, entity in entities(device.cameras, topics, can).items()
        },
    }
    body = msgspec.json.encode(payload)
    return Message(discovery_topic(prefix, device.id), body, Delivery.STATE, retain=True, schema="")


def removal(topic: str) -> Message:
    """Take back what was retained on `topic`; of an announcement, the device and its entities."""
    return Message(topic, b"", Delivery.STATE, retain=True, schema="")


def abilities(health: Health, known: Abilities) -> Abilities:
    """Return what was known of the machine and what a report adds.

    What has once been told stays: a sensor that falls silent must not take its entity, and what
    people made of it, away.
    """
    throttled = health.throttled.known or ()
    return Abilities(
        power=known.power or health.power.source is not None,
        soc_temperature=known.soc_temperature or health.thermal_c.soc is not None,
        tpu_temperature=known.tpu_temperature or health.thermal_c.tpu is not None,
        under_voltage=known.under_voltage or "under_voltage" in throttled,
        throttling=known.throttling or "throttled" in throttled,
        accelerator=known.accelerator or health.accelerator.state != "none",
    )


def _about(device: Device, identity: str) -> dict[str, object]:
    return {
        "identifiers": [identity],
        "name": device.id,
        "manufacturer": "edge-app",
        "model": "Camera appliance",
        "hw_version": device.machine,
        "sw_version": device.version,
        **({"suggested_area": device.area} if device.area else {}),
    }
