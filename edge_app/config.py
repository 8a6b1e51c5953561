"""The configuration file: TOML into frozen structs, with every fault reported at once."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from edge_app.camera.sources import parse_source, redacted
from edge_app.errors import ConfigError, EdgeAppError
from edge_app.validate import convert, shown

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
TopicName = Annotated[
    str, Meta(pattern=rf"^[^+#\0]+{_END}", max_length=200, description="a topic without + and #")
]
Prefix = Annotated[
    str,
    Meta(
        pattern=rf"^[^+#\0]*{_END}", max_length=200, description="a topic without + or #, or empty"
    ),
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
    performance: Literal["low", "medium", "high", "max"] = "high"
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


def load(path: Path) -> Config:
    """Read and check the file at `path`. Raises ConfigError listing every fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"{path}: cannot be read: {reason}",
            hint="give the path with --config; `edge-app config schema` says what goes in it",
        ) from error
    return parse(text, str(path))


def parse(text: str, origin: str) -> Config:
    """Check configuration `text`; `origin` names it in errors. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # endless numbers and nesting too
        raise ConfigError(f"{origin}: not valid TOML: {error}", hint="see toml.io") from error
    config, faults = convert(Config, data)
    if config is not None:
        faults += _meaning(config)
    if faults or config is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(
            f"{origin}: {count}",
            hint="correct these keys; `edge-app config schema` lists all that are allowed",
            faults=tuple(faults),
        )
    return config


def _meaning(config: Config) -> Iterator[str]:
    """Yield what is wrong with values that are well-formed one by one."""
    for name, camera in config.camera.items():
        if not re.fullmatch(r"[a-z0-9_-]{1,63}", name):
            yield f"camera.{name}: found name {shown(name)}; allowed: a-z, 0-9, - and _"
        try:
            parse_source(camera.source)
        except EdgeAppError as error:
            yield f"camera.{name}.source: {error}; {error.hint}"
    if config.mqtt.url:
        yield from _broker_faults(config.mqtt)
    files = {
        "model.labels": config.model.labels,
        "mqtt.ca_file": config.mqtt.ca_file,
        "mqtt.cert_file": config.mqtt.cert_file,
        "mqtt.key_file": config.mqtt.key_file,
        "mqtt.password_file": config.mqtt.password_file,
    }
    for path, file in files.items():
        if not file:
            continue
        if not Path(file).exists():
            reason = "no such file"
        elif Path(file).is_dir():
            reason = "a directory"
        else:
            reason = "" if os.access(file, os.R_OK) else "not readable by this user"
        if reason:
            yield f"{path}: found {shown(file)}: {reason}; allowed: a readable file, or empty"
    if config.mqtt.password_file and _open_to_others(Path(config.mqtt.password_file)):
        yield (
            f"mqtt.password_file: {config.mqtt.password_file} can be read by other users; "
            f"allowed: no access for others (chmod o= {config.mqtt.password_file})"
        )


def absent_sources(config: Config) -> Iterator[str]:
    """Yield which recordings and devices are not there at this moment."""
    for name, camera in config.camera.items():
        scheme, rest = parse_source(camera.source)
        if scheme in ("images", "file", "v4l2") and not Path(rest).exists():
            yield f"camera.{name}.source: {rest} is not there now"


def _broker_faults(mqtt: Mqtt) -> Iterator[str]:
    try:
        url = urlsplit(mqtt.url)
        known = url.scheme in ("mqtt", "mqtts") and bool(url.hostname) and url.port != 0
        bare = not (url.path.strip("/") or url.query or url.fragment)
    except ValueError:  # a port that is no number up to 65535, an unclosed bracket
        known = bare = False
    if not known or not bare:
        allowed = "mqtt://HOST[:PORT] or mqtts://HOST[:PORT], nothing after it"
        yield f"mqtt.url: found {shown(hide_password(mqtt.url))}; allowed: {allowed}"
    if not known:
        return
    if url.username or url.password:
        yield "mqtt.url: holds a user name or password; use mqtt.username and mqtt.password_file"
    if bool(mqtt.cert_file) != bool(mqtt.key_file):
        yield "mqtt.cert_file and mqtt.key_file: only one is set; set both or none"
    if mqtt.password_file and not mqtt.username:
        yield "mqtt.password_file: set without mqtt.username; MQTT sends no password without one"
    if url.scheme == "mqtt" and (mqtt.ca_file or mqtt.cert_file):
        yield "mqtt.url: certificates are set but mqtt:// does not encrypt; use mqtts://"


def _open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IRWXO)
    except OSError:
        return False


def hide_password(url: str) -> str:
    """Return `url` with the password in it, if any, replaced by asterisks."""
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", url)


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
