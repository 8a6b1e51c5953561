"""What Home Assistant shows of an appliance, entity by entity. Pure.

Everything is picked from the messages that go out anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_app.publish.entity import Availability, Entity, template
from edge_app.publish.vitals import Abilities, vitals
from edge_app.publish.wire import Topics


def entities(cameras: Sequence[str], topics: Topics, can: Abilities) -> dict[str, Entity]:
    """Return every entity by its key, which tells it from the device's others for ever."""
    return {
        **_sight(cameras, topics),
        **_controls(topics),
        **({"performance": _performance(topics)} if can.accelerator else {}),
        **vitals(topics, can),
    }


def _sight(cameras: Sequence[str], topics: Topics) -> dict[str, Entity]:
    found = {
        "snapshot": Entity(
            platform="image",
            name="Snapshot",
            image_topic=topics.snapshot,
            content_type="image/jpeg",
        )
    }
    for camera in cameras:
        more = f" {camera}" if len(cameras) > 1 else ""
        found[f"label_{camera}"] = _label(camera, "Label" + more, topics)
        found[f"score_{camera}"] = _score(camera, "Score" + more, topics)
        found[f"take_snapshot_{camera}"] = Entity(
            platform="button",
            name="Take snapshot" + more,
            icon="mdi:camera",
            command_topic=topics.commands + "snapshot",
            payload_press=f'{{"camera":"{camera}"}}',
        )
    return found


def _label(camera: str, name: str, topics: Topics) -> Entity:
    label = "(value_json.labels | map(attribute='label') | first | default('nothing'))[:255]"
    labels = "{'labels': value_json.labels, 'backend': value_json.backend}"
    kept = "none if this.state in ('unknown', 'unavailable') else this.state"
    kept_labels = (
        "{'labels': this.attributes.get('labels', []), 'backend': this.attributes.get('backend')}"
    )
    return Entity(
        platform="sensor",
        name=name,
        icon="mdi:tag-outline",
        availability=_while_watching(topics),
        availability_mode="all",
        state_topic=topics.result,
        value_template=_of_camera(camera, label, kept),
        json_attributes_topic=topics.result,
        json_attributes_template=_of_camera(
            camera, f"{labels} | tojson", f"{kept_labels} | tojson"
        ),
    )


def _score(camera: str, name: str, topics: Topics) -> Entity:
    score = "(value_json.labels[0].score * 100) | round(1) if value_json.labels else none"
    return Entity(
        platform="sensor",
        name=name,
        icon="mdi:percent-outline",
        availability=_while_watching(topics),
        availability_mode="all",
        state_topic=topics.result,
        value_template=_of_camera(camera, score, "''"),
        state_class="measurement",
        unit_of_measurement="%",
        suggested_display_precision=0,
    )


def _while_watching(topics: Topics) -> tuple[Availability, ...]:
    """Nothing is seen while the appliance is paused: the last label would be a lie."""
    watching = "'offline' if value_json.settings.paused else 'online'"
    return Availability(topics.status), Availability(topics.info, template(watching))


def _of_camera(camera: str, value: str, otherwise: str) -> str:
    """Return a template for one camera's results; those of all cameras have the same topic."""
    return template(f"({value}) if value_json.camera == '{camera}' else ({otherwise})")


def _controls(topics: Topics) -> dict[str, Entity]:
    return {
        "paused": Entity(
            platform="switch",
            name="Paused",
            icon="mdi:pause",
            state_topic=topics.info,
            value_template=template("'ON' if value_json.settings.paused else 'OFF'"),
            state_on="ON",
            state_off="OFF",
            command_topic=topics.commands + "set",
            payload_on='{"paused":true}',
            payload_off='{"paused":false}',
        ),
        "threshold": Entity(
            platform="number",
            name="Threshold",
            icon="mdi:filter-outline",
            entity_category="config",
            state_topic=topics.info,
            value_template=template("value_json.settings.threshold"),
            command_topic=topics.commands + "set",
            command_template='{"threshold": {{ value }}}',
            min=0,
            max=1,
            step=0.01,
        ),
        "self_test": Entity(
            platform="button",
            name="Self-test",
            icon="mdi:clipboard-check-outline",
            entity_category="diagnostic",
            command_topic=topics.commands + "selftest",
            payload_press="{}",
        ),
        "self_test_result": _self_test_result(topics),
        "restart": Entity(
            platform="button",
            name="Restart",
            entity_category="config",
            device_class="restart",
            command_topic=topics.commands + "restart",
            payload_press="{}",
        ),
    }


def _self_test_result(topics: Topics) -> Entity:
    mine = "value_json.command == 'selftest' and value_json.ok"
    faults = "value_json.result.checks | rejectattr('ok') | list"
    kept = "this.attributes.get('failed', [])"
    return Entity(
        platform="binary_sensor",
        name="Self-test result",
        entity_category="diagnostic",
        device_class="problem",
        state_topic=topics.reply,
        value_template=template(f"('OFF' if value_json.result.passed else 'ON') if {mine} else ''"),
        json_attributes_topic=topics.reply,
        json_attributes_template=template(
            f"{{'failed': ({faults}) if {mine} else {kept}}} | tojson"
        ),
    )


def _performance(topics: Topics) -> Entity:
    return Entity(
        platform="select",
        name="Performance",
        icon="mdi:speedometer",
        entity_category="config",
        state_topic=topics.info,
        value_template=template("value_json.settings.performance"),
        command_topic=topics.commands + "performance",
        command_template='{"level": "{{ value }}"}',
        options=("low", "medium", "high", "max"),
    )
