"""The commands: one table, and the pure part of serving them: a message in, a reply out.

Nothing here knows how a command takes effect; `Controls` does. docs/commands.md is for users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from edge_app.config import Fraction
from edge_app.domain import Event, Received
from edge_app.recorder import FlightRecord
from edge_app.settings import Mode, Performance, Settings
from edge_app.validate import convert, nearest, shown

MAX_BYTES = 4096  # of a command's arguments
MAX_PER_S = 10
_MAX_KEYS = 16
_MAX_REASON = 500  # characters
_MAX_REPLY_TOPIC = 200  # characters
_MAX_CORRELATION_BYTES = 256
_EVENT_EVERY_S = 60.0


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


class SnapshotArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """`camera`: its name in the configuration; empty: the first one."""

    camera: Annotated[str, Meta(max_length=63)] = ""


class PerformanceArguments(Struct, frozen=True, forbid_unknown_fields=True):
    """`level`: 63, 125, 250 or 500 MHz; max is for rooms of at most 25 degrees Celsius."""

    level: Performance


class SnapshotTaken(Struct, frozen=True):
    """What was published on the snapshot topic just before this reply. `bytes`: of the JPEG."""

    camera: str
    frame: int
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
        raise Refused("nothing to set; allowed: threshold, top_k, mode, fps")
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
        "Publish the camera's newest frame as a JPEG with the label drawn in.",
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


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one command: `result`, or why there is none (`reason`).

    `topic`: where the sender wants it; empty: the appliance's own reply topic.
    """

    command: str
    topic: str = ""
    correlation: bytes = b""
    result: Struct | Work | None = None
    reason: str = ""


def read(command: str, payload: bytes) -> Struct:
    """Return the arguments of `command`. Raises Refused, naming every fault."""
    if command not in COMMANDS:
        near = nearest(command[:100], COMMANDS)
        raise Refused(f"unknown command {shown(command)}{near}; allowed: {', '.join(COMMANDS)}")
    if len(payload) > MAX_BYTES:
        raise Refused(f"{len(payload)} bytes of arguments; allowed: at most {MAX_BYTES}")
    try:
        data = msgspec.json.decode(payload) if payload.strip() else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the payload is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Refused(f"found {shown(data)}; allowed: a JSON object, or nothing")
    if len(data) > _MAX_KEYS:
        raise Refused(f"{len(data)} arguments; allowed: at most {_MAX_KEYS}")
    arguments, faults = convert(COMMANDS[command].arguments, data)
    if faults or arguments is None:
        raise Refused("; ".join(faults))
    return arguments


class Desk:
    """Takes in commands, and refuses what may not be served. Pure but for what `controls` does.

    `prefix`: of the topics commands arrive on. `reserved`: beginnings of topics that no reply may
    go to: a reply that looks like a state, a command or an announcement would be taken for one.
    """

    def __init__(
        self, controls: Controls, prefix: str, own_reply: str, reserved: Sequence[str]
    ) -> None:
        self._controls = controls
        self._prefix = prefix
        self._own_reply = own_reply
        self._reserved = tuple(reserved)
        self._tokens = float(MAX_PER_S)
        self._counted_s = 0.0
        self._warned_s = -1.0
        self._refusals = 0  # since the last event
        self._last_refusal: tuple[str, str] = ("", "")
        self._event_due_s = 0.0

    def serve(self, received: Received, now_s: float) -> Reply | None:
        """Carry out one command; None when not even a refusal is due. `now_s` is monotonic."""
        name = received.topic.removeprefix(self._prefix)
        topic, correlation, fault = self._return_address(received)
        if not self._admit(now_s):
            reason = f"more than {MAX_PER_S} commands a second"
            self._count(name, reason)
            if now_s - self._warned_s < 1:  # or a flood of commands would make one of replies
                return None
            self._warned_s = now_s
            return Reply(_short(name), topic, correlation, reason=reason)
        try:
            result = self._carry_out(name, received, fault)
        except Refused as refusal:
            reason = _short(str(refusal), _MAX_REASON)
            self._count(name, reason)
            return Reply(_short(name), topic, correlation, reason=reason)
        return Reply(name, topic, correlation, result)

    def _carry_out(self, name: str, received: Received, fault: str) -> Struct | Work:
        if fault:
            raise Refused(fault)
        if received.retained:
            raise Refused("retained: it may be from long ago; publish it without retain")
        arguments = read(name, received.payload)
        return COMMANDS[name].run(self._controls, arguments)

    def events(self, now_s: float) -> list[Event]:
        """Say what was refused since the last time: at once, then once a minute at most."""
        if not self._refusals or now_s < self._event_due_s:
            return []
        count, self._refusals = self._refusals, 0
        self._event_due_s = now_s + _EVENT_EVERY_S
        command, reason = self._last_refusal
        message = f"refused {command}: {reason}"
        return [
            Event(
                "command_refused", message, {"command": command, "reason": reason, "count": count}
            )
        ]

    def _admit(self, now_s: float) -> bool:
        """Take a token; there is a new one every tenth of a second, and ten at most."""
        self._tokens += (now_s - self._counted_s) * MAX_PER_S
        self._tokens = min(self._tokens, float(MAX_PER_S))
        self._counted_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _count(self, name: str, reason: str) -> None:
        self._refusals += 1
        self._last_refusal = (_short(name), reason)

    def _return_address(self, received: Received) -> tuple[str, bytes, str]:
        """Return where the reply goes, what goes with it, and what is wrong with the request's."""
        topic, correlation = received.reply_topic, received.correlation
        if len(correlation) > _MAX_CORRELATION_BYTES:
            size = len(correlation)
            fault = f"{size} bytes of correlation data; allowed: {_MAX_CORRELATION_BYTES}"
            return "", b"", fault
        if not topic or topic == self._own_reply:
            return "", correlation, ""
        if len(topic) > _MAX_REPLY_TOPIC or not topic.isprintable() or set(topic) & {"+", "#"}:
            fault = f"response topic {shown(topic)}; allowed: a short one without + and #"
            return "", correlation, fault
        if topic.startswith((*self._reserved, "$")):
            fault = f"response topic {shown(topic)}; allowed: none below {' '.join(self._reserved)}"
            return "", correlation, fault
        return topic, correlation, ""


def _short(text: str, length: int = 64) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
