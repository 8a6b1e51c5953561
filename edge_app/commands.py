"""The commands: one table of what each takes, does and answers.

Nothing here knows how a command takes effect; `Controls` does. docs/commands.md is for users.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from edge_app.config import Fraction
from edge_app.domain import Label, Performance
from edge_app.recorder import FlightRecord
from edge_app.settings import Mode, Settings
from edge_app.validate import convert, nearest, shown

MAX_BYTES = 4096  # of a command's arguments
_MAX_KEYS = 16


class Refused(Exception):
    """A command that is not carried out; the text says why."""


class NoArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """An empty payload, or `{}`."""


class SetArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """At least one. What is left out stays as it is; `fps` 0 is no limit."""

    threshold: Fraction | UnsetType = UNSET
    top_k: Annotated[int, Meta(ge=1, le=1000)] | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET
    fps: Annotated[float, Meta(ge=0, le=1000)] | UnsetType = UNSET
    paused: bool | UnsetType = UNSET


class SnapshotArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """`camera`: its name in the configuration; empty: the first one."""

    camera: Annotated[str, Meta(max_length=63)] = ""


class PerformanceArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """`level`: 63, 125, 250 or 500 MHz; max is for rooms of at most 25 degrees Celsius."""

    level: Performance


class SnapshotTaken(Struct, frozen=True):
    """What was published on the snapshot topic just before this reply. `bytes`: of the JPEG.

    `labels`: what this very frame shows, as in a result; null when the engine did not answer.
    """

    camera: str
    frame: int
    labels: tuple[Label, ...] | None
    size_px: tuple[int, int]
    bytes: int


class Check(Struct, frozen=True):
    """One part of the self-test: what was looked at, and what was found."""

    check: str
    ok: bool
    message: str


class SelfTest(Struct, frozen=True):
    """`passed`: every check was fine."""

    passed: bool
    took_ms: float
    checks: list[Check]


class Restarting(Struct, frozen=True):
    """`supervised`: systemd runs this process and will start it again."""

    supervised: bool


Work: TypeAlias = Callable[[], Struct]
"""The slow rest of a command, for a thread of its own. Raises Refused or EdgeAppError."""


class Controls(Protocol):
    """What commands act on. Called in the loop's thread; every call returns at once.

    Raises Refused for what cannot be done.
    """

    def change(self, **changes: object) -> Settings:
        """Put new values of `Settings` into effect; return all of them."""
        ...

    def snapshot(self, camera: str) -> Work: ...

    def selftest(self) -> Work: ...

    def restart(self) -> Restarting: ...

    def dump(self) -> FlightRecord: ...


@dataclass(frozen=True, slots=True)
class Command:
    """What a command takes, does and answers with (`run` returns a `reply`, now or as `Work`)."""

    doc: str
    arguments: type[Struct]
    reply: type[Struct]
    run: Callable[[Controls, Any], Struct | Work]


def _set(controls: Controls, arguments: SetArguments) -> Settings:
    given = {name: value for name, value in _items(arguments) if value is not UNSET}
    if not given:
        raise Refused("nothing to set; allowed: threshold, top_k, mode, fps, paused")
    return controls.change(**given)


def _items(struct: Struct) -> list[tuple[str, object]]:
    return list(msgspec.structs.asdict(struct).items())


COMMANDS: Mapping[str, Command] = {
    "pause": Command(
        "Stop inferring; cameras, statistics and commands go on.",
        NoArguments,
        Settings,
        lambda controls, _: controls.change(paused=True),
    ),
    "resume": Command(
        "Infer again.",
        NoArguments,
        Settings,
        lambda controls, _: controls.change(paused=False),
    ),
    "set": Command(
        "Change what is published and how many frames are inferred, until the next restart.",
        SetArguments,
        Settings,
        _set,
    ),
    "snapshot": Command(
        "Publish the camera's newest frame as a JPEG with its label drawn in, also while paused.",
        SnapshotArguments,
        SnapshotTaken,
        lambda controls, arguments: controls.snapshot(arguments.camera),
    ),
    "selftest": Command(
        "Check the model against its passport, every camera, the engine and the sensors.",
        NoArguments,
        SelfTest,
        lambda controls, _: controls.selftest(),
    ),
    "performance": Command(
        "Set the Edge TPU's clock; the processor answers while the device is opened again.",
        PerformanceArguments,
        Settings,
        lambda controls, arguments: controls.change(performance=arguments.level),
    ),
    "restart": Command(
        "End in order, with exit code 0; systemd starts the appliance again.",
        NoArguments,
        Restarting,
        lambda controls, _: controls.restart(),
    ),
    "dump": Command(
        "Return the flight recorder: statistics and events of the last 60 s.",
        NoArguments,
        FlightRecord,
        lambda controls, _: controls.dump(),
    ),
}


def read(command: str, payload: bytes) -> Struct:
    """Return the arguments of `command`. Raises Refused, naming every fault."""
    if command not in COMMANDS:
        near = nearest(command, COMMANDS)
        allowed = ", ".join(COMMANDS)
        raise Refused(f"unknown command {shown(command[:100])}{near}; allowed: {allowed}")
    if len(payload) > MAX_BYTES:
        raise Refused(f"{len(payload)} bytes of arguments; allowed: at most {MAX_BYTES}")
    data = _decoded(payload) if payload.strip() else {}
    if not isinstance(data, dict):
        raise Refused(f"found {shown(data)}; allowed: a JSON object, or nothing")
    if len(data) > _MAX_KEYS:
        raise Refused(f"{len(data)} arguments; allowed: at most {_MAX_KEYS}")
    arguments, faults = convert(COMMANDS[command].arguments, data)
    if faults or arguments is None:
        raise Refused("; ".join(faults))
    return arguments


def _decoded(payload: bytes) -> object:
    """Raises Refused for what is no JSON, or means one thing to us and another to others."""
    try:
        text = payload.decode()
        data = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
        # Half of a pair of surrogates, as \ud83d alone, can be written and never be sent on.
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Refused(f"the payload is not JSON: byte {error.start} is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise Refused(
            "the payload is not JSON: it holds half a character (\\udXXX alone)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"the payload is not JSON: {error}") from error
    return data


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        said = json.dumps(twice[:60])  # in ASCII: it may hold what no reply could
        raise Refused(f"{said} is given more than once; allowed: each argument once")
    return found


def _no_number(word: str) -> object:
    raise ValueError(f"{word} is no number")
