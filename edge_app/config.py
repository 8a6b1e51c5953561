"""The configuration file: TOML into frozen structs, with every fault reported at once."""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edge_app.camera.sources import parse_source, redacted
from edge_app.config_broker import (
    address_faults,
    certificate_faults,
    password_faults,
    tree_faults,
)
from edge_app.config_files import file_faults
from edge_app.domain import Performance
from edge_app.errors import ConfigError, EdgeAppError, Unreadable
from edge_app.files import read_text
from edge_app.validate import convert, shown

MAX_FILE_BYTES = 1_000_000
Backend = Literal["auto", "edgetpu", "cpu"]
# In Python `$` also matches before a final newline, in JSON Schema it does not; this is no line end
# in both.
_END = r"$(?!\n)"
Text = Annotated[
    str,
    Meta(pattern=r"^[^\0]*$", max_length=1000, description="text of at most 1000 characters"),
]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Pixels = Annotated[int, Meta(ge=16, le=16_384)]
_SOURCES = "picamera:0, v4l2:/dev/video0, rtsp://HOST/PATH, file:CLIP or images:DIR"
_CAMERAS = 'one table or more, such as [camera.main] with source = "picamera:0"'
# Brokers keep $... for themselves, and hang up on control characters.
_LEVEL = r"[^+#/\x00-\x1f\x7f]+"
_TOPIC = rf"(?!\$){_LEVEL}(/{_LEVEL})*"
_TOPIC_SAYS = "a topic without + and #, no / at its ends, nothing empty between two, no $ in front"
TopicName = Annotated[
    str, Meta(pattern=f"^{_TOPIC}{_END}", max_length=200, description=_TOPIC_SAYS)
]
Prefix = Annotated[
    str, Meta(pattern=f"^({_TOPIC})?{_END}", max_length=200, description=f"{_TOPIC_SAYS}; or empty")
]
DeviceId = Annotated[
    str, Meta(pattern=rf"^[a-z0-9-]{{1,63}}{_END}", description="1 to 63 of a-z, 0-9 and -")
]
EdgeTpu = Annotated[
    str,
    Meta(
        pattern=rf"^(|usb|pci|(usb|pci)?:[0-9]+){_END}",
        description='"" (any), "usb", "pci", or one by number: ":0", "usb:0", "pci:0"',
    ),
]


def _host_id() -> str:
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower())[:63].strip("-") or "edge-app"


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """Who this appliance is."""

    id: DeviceId = msgspec.field(default_factory=_host_id)
    area: Text = ""


class CameraConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[camera.NAME]` table."""

    source: Annotated[str, Meta(pattern=r"^[^\0]+$", max_length=1000, description=_SOURCES)]
    size_px: tuple[Pixels, Pixels] = (640, 480)
    fps: Annotated[float, Meta(ge=0, le=1000)] = 30.0
    loop: bool = True
    crop: Literal["centre", "stretch", "letterbox"] = "centre"


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What to run, and on what.

    `performance`: the Edge TPU's clock. `threads`: of one inference on the CPU.
    """

    name: Annotated[
        str, Meta(pattern=r"^[^\0]+$", max_length=1000, description="a catalogue name or a path")
    ] = "mobilenet_v2_1.0_224"
    labels: Text = ""
    backend: Backend = "auto"
    device: EdgeTpu = ""
    performance: Performance = "high"
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 3
    threshold: Fraction = 0.3
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    runtime: Literal["auto", "litert", "tflite"] = "auto"


class Publish(Struct, frozen=True, forbid_unknown_fields=True):
    """When a result is worth sending. The last three keys act in mode "changes"."""

    mode: Literal["changes", "every"] = "changes"
    heartbeat_s: Seconds = 60.0
    smoothing_s: Annotated[float, Meta(ge=0, le=60)] = 0.5
    hysteresis: Fraction = 0.1
    min_interval_s: Seconds = 1.0


class Mqtt(Struct, frozen=True, forbid_unknown_fields=True):
    """The broker. An empty `url` prints JSON lines on stdout instead.

    `version` "auto": 5, and 3.1.1 when the broker refuses it.
    """

    url: Text = ""
    username: Text = ""
    password_file: Text = ""
    ca_file: Text = ""
    cert_file: Text = ""
    key_file: Text = ""
    version: Literal["auto", "3.1.1"] = "auto"
    base: TopicName = "edge"
    discovery_prefix: Prefix = "homeassistant"


class Spool(Struct, frozen=True, forbid_unknown_fields=True):
    """Where messages wait for the broker. An empty `path`: in memory only."""

    path: Text = "/var/lib/edge-app/spool.db"
    max_mb: Positive = 64


class Stats(Struct, frozen=True, forbid_unknown_fields=True):
    """How often the appliance reports on itself."""

    interval_s: Annotated[float, Meta(ge=0.5, le=3600)] = 10.0


class PowerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What measures electrical power; "auto": the best that answers (docs/power.md)."""

    source: Literal["auto", "ina2xx", "poe", "pmic", "hwmon", "rapl", "none"] = "auto"


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be configured."""

    camera: Annotated[dict[str, CameraConfig], Meta(min_length=1, description=_CAMERAS)]
    device: Device = Device()
    model: ModelConfig = ModelConfig()
    publish: Publish = Publish()
    mqtt: Mqtt = Mqtt()
    spool: Spool = Spool()
    stats: Stats = Stats()
    power: PowerConfig = PowerConfig()


def load(path: Path, also: Callable[[Config], Iterable[str]] = lambda _: ()) -> Config:
    """Read and check the file at `path`; see `parse`. Raises ConfigError listing every fault."""
    try:
        text = read_text(path, MAX_FILE_BYTES)
    except Unreadable as error:
        is_absent = isinstance(error.__cause__, FileNotFoundError)
        raise ConfigError(
            f"{path}: cannot be read: {error}",
            hint="put it there (`edge-app config schema` says what goes in it), or name another "
            "with --config"
            if is_absent
            else error.hint,
        ) from error
    return parse(text, str(path), also)


def parse(text: str, origin: str, also: Callable[[Config], Iterable[str]] = lambda _: ()) -> Config:
    """Check configuration `text`; `origin` names it in errors. Raises ConfigError.

    `also` yields what is wrong beyond that, KEY: FAULT. It is asked even when there are faults: of
    the keys that have them it sees the defaults, and what it says of those keys is dropped.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # endless numbers and nesting too
        raise ConfigError(f"{origin}: not valid TOML: {error}", hint="see toml.io") from error
    config, faults = convert(Config, data)
    # Without a camera, the rest is looked at all the same.
    sound = config or convert(Config, data | {"camera": {"main": {"source": "picamera:0"}}})[0]
    if sound is not None:
        for find in (_meaning, also):
            told = {_key(fault) for fault in faults}
            faults += [fault for fault in find(sound) if _key(fault) not in told]
    if faults or config is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(
            f"{origin}: {count}",
            hint="correct these keys; `edge-app config schema` lists all that are allowed",
            faults=tuple(faults),
        )
    return config


def _key(fault: str) -> str:
    return fault.partition(": ")[0]


def _meaning(config: Config) -> Iterator[str]:
    """Yield what is wrong with values that are well-formed one by one."""
    holders: dict[str, str] = {}
    for name, camera in config.camera.items():
        if not re.fullmatch(r"[a-z0-9_-]{1,63}", name):
            yield f"camera.{name}: found name {shown(name)}; allowed: a-z, 0-9, - and _"
        try:
            scheme, _ = parse_source(camera.source)
        except EdgeAppError as error:
            yield f"camera.{name}.source: {'; '.join(filter(None, (str(error), error.hint)))}"
            continue
        holder = holders.setdefault(camera.source, name)
        if holder != name and scheme in ("picamera", "v4l2"):
            yield (
                f"camera.{name}.source: found {shown(camera.source)}, which camera.{holder} has; "
                "allowed: each camera once"
            )
    mqtt = config.mqtt
    if mqtt.url:
        yield from _broker_faults(mqtt)
    files = {"model.labels": config.model.labels}
    for key in ("ca_file", "cert_file", "key_file", "password_file"):
        files[f"mqtt.{key}"] = getattr(mqtt, key)
    faults = list(file_faults(files))
    yield from faults
    unreadable = {_key(fault) for fault in faults}
    readable = {key: "" if key in unreadable else file for key, file in files.items()}
    yield from certificate_faults(
        readable["mqtt.ca_file"], readable["mqtt.cert_file"], readable["mqtt.key_file"]
    )
    if readable["mqtt.password_file"]:
        yield from password_faults(mqtt.password_file)


def _broker_faults(mqtt: Mqtt) -> Iterator[str]:
    yield from address_faults(mqtt.url, certificates=bool(mqtt.ca_file or mqtt.cert_file))
    for empty, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if getattr(mqtt, other) and not getattr(mqtt, empty):
            yield f"mqtt.{empty}: empty, while mqtt.{other} is set; allowed: both or none"
    if mqtt.password_file and not mqtt.username:
        yield (
            "mqtt.username: empty, while mqtt.password_file is set; MQTT sends no password without "
            "a user name"
        )
    yield from tree_faults(mqtt.base, mqtt.discovery_prefix)


def show(config: Config) -> str:
    """Return the effective configuration as TOML, passwords hidden."""
    lines = []
    plain: dict[str, Any] = msgspec.to_builtins(config)
    cameras: dict[str, Any] = plain.pop("camera")
    for camera in cameras.values():
        camera["source"] = redacted(camera["source"])
    tables = {f"camera.{name}": table for name, table in cameras.items()} | plain
    for title, table in tables.items():
        lines.append(f"[{title}]")
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    # A JSON value is a TOML value, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration."""
    return msgspec.json.schema(Config)
