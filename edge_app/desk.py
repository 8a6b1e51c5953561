"""Where commands come in: a message in, a reply out, and what may not be served is refused.

Pure, but for what the controls do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from edge_app.commands import COMMANDS, Controls, Refused, Work, read
from edge_app.domain import Event, Received
from edge_app.validate import shown

MAX_PER_S = 10
_MAX_REASON = 500  # characters
_MAX_REPLY_TOPIC = 200  # characters
_MAX_CORRELATION_BYTES = 256
_EVENT_EVERY_S = 60.0


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


class Desk:
    """Takes in commands and refuses what may not be served.

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
        self._admitted_s: deque[float] = deque(maxlen=MAX_PER_S)
        self._warned_s = -1.0
        self._refusals = 0  # since the last event
        self._last_refusal: tuple[str, str] = ("", "")
        self._event_due_s = 0.0

    def serve(self, received: Received, now_s: float) -> Reply | None:
        """Carry out one command; None when no answer is due. `now_s` is monotonic."""
        if received.retained and not received.payload:  # clears what the broker holds for later
            return None
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
            raise Refused("retained: the broker would send it at every start; send it without")
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
        """Whether fewer than MAX_PER_S were admitted in the second before."""
        full = len(self._admitted_s) == MAX_PER_S
        if full and now_s - self._admitted_s[0] < 1:
            return False
        self._admitted_s.append(now_s)
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
        if topic.startswith("$"):
            fault = f"response topic {shown(topic)}; allowed: one that does not begin with $"
            return "", correlation, fault
        if topic.startswith(self._reserved):
            fault = f"response topic {shown(topic)}; allowed: none below {' '.join(self._reserved)}"
            return "", correlation, fault
        return topic, correlation, ""


def _short(text: str, length: int = 64) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
