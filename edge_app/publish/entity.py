"""One entity as Home Assistant's MQTT integration wants it described, and the kinds we use. Pure.

Home Assistant drops a key that it does not know in silence: here, the type checker does not.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Template = str  # Jinja, rendered by Home Assistant: "" leaves the state as it was, none: unknown


class Availability(Struct, frozen=True, omit_defaults=True):
    """A topic that says "online" or "offline", or whose template does."""

    topic: str
    value_template: Template = ""


class Entity(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is empty here is left to Home Assistant.

    Without a `state_topic` or an `availability`, those of the whole device hold.
    """

    platform: Literal["sensor", "binary_sensor", "image", "button", "switch", "number", "select"]
    name: str
    unique_id: str = ""
    icon: str = ""
    entity_category: Literal["", "config", "diagnostic"] = ""
    enabled_by_default: bool = True
    availability: tuple[Availability, ...] | None = None
    availability_mode: Literal["latest", "all"] = "latest"
    state_topic: str = ""
    value_template: Template = ""
    json_attributes_topic: str = ""
    json_attributes_template: Template = ""
    device_class: str = ""
    state_class: Literal["", "measurement", "total_increasing"] = ""
    unit_of_measurement: str = ""
    suggested_display_precision: int | None = None
    options: tuple[str, ...] = ()
    command_topic: str = ""
    command_template: Template = ""
    payload_press: str = ""
    payload_on: str = ""
    payload_off: str = ""
    state_on: str = ""
    state_off: str = ""
    min: float | None = None
    max: float | None = None
    step: float | None = None
    image_topic: str = ""
    content_type: str = ""


def number(
    name: str,
    value: str,
    *,
    unit: str = "",
    icon: str = "",
    device_class: str = "",
    decimals: int | None = None,
    grows: bool = False,
    at_first: bool = True,
) -> Entity:
    """Return a figure about the device. `at_first`: it is enabled without being asked for."""
    return Entity(
        platform="sensor",
        name=name,
        icon=icon,
        entity_category="diagnostic",
        enabled_by_default=at_first,
        device_class=device_class,
        state_class="total_increasing" if grows else "measurement",
        unit_of_measurement=unit,
        suggested_display_precision=decimals,
        value_template=template(value),
    )


def choice(name: str, value: str, options: tuple[str, ...], *, icon: str) -> Entity:
    """Return one of a few words about the device."""
    return Entity(
        platform="sensor",
        name=name,
        icon=icon,
        entity_category="diagnostic",
        device_class="enum",
        options=options,
        value_template=template(value),
    )


def problem(name: str, condition: str, *, attributes_topic: str, attributes: str) -> Entity:
    """Return a warning light; `condition` none: nobody can tell."""
    return Entity(
        platform="binary_sensor",
        name=name,
        entity_category="diagnostic",
        device_class="problem",
        value_template=template(condition),
        json_attributes_topic=attributes_topic,
        json_attributes_template=template(f"{attributes} | tojson"),
    )


def template(expression: str) -> Template:
    return "{{ " + expression + " }}"
