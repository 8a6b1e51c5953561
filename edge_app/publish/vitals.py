"""What Home Assistant shows of how the appliance fares: picked from `stats` and `status`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from edge_app.publish.entity import Entity, choice, number, problem, template
from edge_app.publish.wire import OFFLINE, ONLINE, Topics

_ACCELERATOR_STATES = ("none", "opening", "canary", "promoted", "healthy", "backing_off")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this machine can tell or do that not every one can.

    An entity that would never have a value only clutters a dashboard: it is left out.
    """

    power: bool = False
    soc_temperature: bool = False
    tpu_temperature: bool = False
    under_voltage: bool = False
    throttling: bool = False
    accelerator: bool = False


def vitals(topics: Topics, can: Abilities) -> dict[str, Entity]:
    """Return the entities by their keys."""
    return {
        **_work(),
        **(_accelerator(topics) if can.accelerator else {}),
        **(_energy(topics) if can.power else {}),
        **_hardware(topics, can),
        **_process(topics),
    }


def _work() -> dict[str, Entity]:
    return {
        "fps": number("Frame rate", "value_json.fps.inferred", unit="fps", icon="mdi:filmstrip"),
        "latency": _latency("Latency p95", "value_json.latency_ms.end_to_end"),
        "inference": _latency("Inference p95", "value_json.latency_ms.invoke", at_first=False),
        "frames_dropped": number(
            "Frames dropped",
            "value_json.frames.dropped",
            icon="mdi:filmstrip-off",
            at_first=False,
        ),
        "backend": choice("Backend", "value_json.backend", ("cpu", "edgetpu"), icon="mdi:chip"),
    }


def _latency(name: str, stage: str, *, at_first: bool = True) -> Entity:
    return number(
        name,
        f"{stage}.p95 if {stage} else none",  # null in a window without frames
        unit="ms",
        device_class="duration",
        decimals=1,
        at_first=at_first,
    )


def _accelerator(topics: Topics) -> dict[str, Entity]:
    return {
        "accelerator": choice(
            "Accelerator",
            "value_json.accelerator.state",
            _ACCELERATOR_STATES,
            icon="mdi:expansion-card",
        ),
        "accelerator_problem": problem(
            "Accelerator problem",
            "'ON' if value_json.accelerator.cause else 'OFF'",
            attributes_topic=topics.stats,
            attributes="{'cause': value_json.accelerator.cause}",
        ),
        "fallbacks": number(
            "Fallbacks", "value_json.accelerator.fallbacks", icon="mdi:swap-horizontal", grows=True
        ),
    }


def _energy(topics: Topics) -> dict[str, Entity]:
    total = "value_json.power.energy_total_j"
    return {
        "power": Entity(
            platform="sensor",
            name="Power",
            value_template=template("value_json.power.watts"),
            json_attributes_topic=topics.stats,
            json_attributes_template=template("{'source': value_json.power.source} | tojson"),
            device_class="power",
            state_class="measurement",
            unit_of_measurement="W",
            suggested_display_precision=2,
        ),
        "energy": Entity(
            platform="sensor",
            name="Energy",
            value_template=template(f"none if {total} is none else ({total} / 3600) | round(4)"),
            device_class="energy",
            state_class="total_increasing",
            unit_of_measurement="Wh",
            suggested_display_precision=1,
        ),
        # No device class: Home Assistant's "energy" is a total, and knows no mJ.
        "energy_per_inference": number(
            "Energy per inference",
            "value_json.power.mj_per_inference",
            unit="mJ",
            icon="mdi:lightning-bolt",
            decimals=1,
        ),
        "energy_per_inference_above_idle": number(
            "Energy per inference above idle",
            "value_json.power.mj_per_inference_above_idle",
            unit="mJ",
            icon="mdi:lightning-bolt-outline",
            decimals=1,
            at_first=False,
        ),
    }


def _hardware(topics: Topics, can: Abilities) -> dict[str, Entity]:
    found = {}
    if can.soc_temperature:
        found["soc_temperature"] = _temperature("Processor temperature", "value_json.thermal_c.soc")
    if can.tpu_temperature:
        found["tpu_temperature"] = _temperature("Edge TPU temperature", "value_json.thermal_c.tpu")
    if can.under_voltage:
        found["under_voltage"] = _throttling("Under-voltage", "select", topics)
    if can.throttling:
        found["throttled"] = _throttling("Throttled", "reject", topics)
    return found


def _temperature(name: str, value: str) -> Entity:
    return number(name, value, unit="°C", device_class="temperature", decimals=0)


def _throttling(name: str, pick: str, topics: Topics) -> Entity:
    """Under-voltage (`pick` "select") or what else slows the processor down ("reject")."""
    now = "value_json.throttled.now"
    some = f"{now} | {pick}('eq', 'under_voltage') | list"
    return problem(
        name,
        f"none if {now} is none else ('ON' if {some} else 'OFF')",
        attributes_topic=topics.stats,
        attributes=f"{{'now': {now}, 'since_boot': value_json.throttled.since_boot}}",
    )


def _process(topics: Topics) -> dict[str, Entity]:
    return {
        "connection": Entity(
            platform="binary_sensor",
            name="Connection",
            entity_category="diagnostic",
            availability=(),  # it is there to say that the appliance is not
            state_topic=topics.status,
            device_class="connectivity",
            payload_on=ONLINE.decode(),
            payload_off=OFFLINE.decode(),
        ),
        "uptime": Entity(
            platform="sensor",
            name="Uptime",
            entity_category="diagnostic",
            # Steps of six minutes: every second would be a new state to keep.
            value_template=template("(value_json.uptime_ms / 3600000) | round(1)"),
            device_class="duration",
            unit_of_measurement="h",
            suggested_display_precision=1,
        ),
        "queued": number("Messages waiting", "value_json.spool.queued", icon="mdi:tray-full"),
        "lost": number(
            "Messages lost", "value_json.spool.dropped", icon="mdi:tray-remove", grows=True
        ),
        "memory": number(
            "Memory",
            "value_json.process.rss_mb",
            unit="MB",
            device_class="data_size",
            decimals=0,
            at_first=False,
        ),
        "processor": number(
            "Processor use",
            "value_json.process.cpu_percent",
            unit="%",
            icon="mdi:cpu-64-bit",
            decimals=0,
            at_first=False,
        ),
    }
