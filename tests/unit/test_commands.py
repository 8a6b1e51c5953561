"""The table of commands and the desk they come in at, without an appliance behind it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.commands import (
    COMMANDS,
    MAX_BYTES,
    Check,
    Refused,
    Restarting,
    SelfTest,
    SnapshotTaken,
    Work,
)
from edge_app.desk import Desk, Reply
from edge_app.domain import Received
from edge_app.recorder import FlightRecord
from edge_app.settings import Settings

PREFIX = "edge-cmd/porch/"
OWN_REPLY = "edge/porch/reply"
RESERVED = ("edge/", "edge-cmd/", "homeassistant/")


class FakeControls:
    """Stands in for a running appliance, and notes what is asked of it."""

    def __init__(self) -> None:
        self.settings = Settings(threshold=0.3, top_k=3, mode="changes")
        self.asked: list[str] = []

    def change(self, **changes: object) -> Settings:
        self.asked.append("change")
        self.settings = msgspec.structs.replace(self.settings, **changes)
        return self.settings

    def snapshot(self, camera: str) -> Work:
        self.asked.append("snapshot")
        if camera not in ("", "main"):
            raise Refused(f"no camera {camera}")
        return lambda: SnapshotTaken("main", 1, None, (640, 480), 20_000)

    def selftest(self) -> Work:
        self.asked.append("selftest")
        return lambda: SelfTest(True, 1.0, [Check("model", True, "fine")])

    def restart(self) -> Restarting:
        self.asked.append("restart")
        return Restarting(False)

    def dump(self) -> FlightRecord:
        self.asked.append("dump")
        return FlightRecord("command", [], [], [])


def desk(controls: FakeControls | None = None) -> Desk:
    return Desk(controls or FakeControls(), PREFIX, OWN_REPLY, RESERVED)


def command(name: str, arguments: object = None, **particulars: Any) -> Received:
    payload = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
    return Received(PREFIX + name, b"" if arguments is None else payload, **particulars)


def reply_to(received: Received, controls: FakeControls | None = None) -> Reply:
    reply = desk(controls).serve(received, 1000.0)
    assert reply is not None
    return reply


GOOD = {
    "pause": None,
    "resume": {},
    "set": {"threshold": 0.5, "top_k": 5, "mode": "every", "fps": 2.5},
    "snapshot": {"camera": "main"},
    "selftest": None,
    "performance": {"level": "max"},
    "restart": None,
    "dump": None,
}


def test_every_command_is_served_and_answers_as_the_table_says() -> None:
    assert GOOD.keys() == COMMANDS.keys()
    for name, arguments in GOOD.items():
        reply = reply_to(command(name, arguments))
        result = reply.result() if callable(reply.result) else reply.result
        assert type(result) is COMMANDS[name].reply, reply


def test_set_changes_only_what_is_named() -> None:
    controls = FakeControls()
    reply_to(command("set", {"fps": 5}), controls)
    assert controls.settings == Settings(threshold=0.3, top_k=3, mode="changes", fps=5.0)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("reboot", None, 'unknown command "reboot"'),
        ("puase", None, "did you mean pause?"),
        ("", None, "unknown command"),
        ("set", b"{", "not JSON"),
        ("set", b"\xff\xfe", "not JSON"),
        ("set", b"[" * 4000, "not JSON"),
        ("set", b'{"threshold": NaN}', "not JSON"),
        ("set", b'{"threshold": 1e999}', "threshold: found Infinity"),
        ("set", b'{"mode": "\\ud800"}', "half a character"),
        ("set", b'{"\\ud800": 1}', "half a character"),
        ("set", b'{"\\ud800": 1, "\\ud800": 2}', '"\\ud800" is given more than once'),
        ("set", b'{"mode": "\xff"}', "byte 10 is not UTF-8"),
        ("set", b'{"threshold":0.6,"threshold":0.2}', '"threshold" is given more than once'),
        ("set", b'{"mode": {"a":1,"a":1}}', '"a" is given more than once'),
        ("pause", {"x": 1}, "x: unknown key; allowed: none"),
        ("set", [1], "a JSON object"),
        ("set", {}, "nothing to set"),
        ("set", {"threshold": 1.1}, "threshold: found 1.1; allowed: a number, at least 0"),
        ("set", {"threshold": None}, "threshold: found null"),
        ("set", {"top_k": 0}, "top_k: found 0"),
        ("set", {"top_k": True}, "top_k: found true"),
        ("set", {"fps": -1}, "fps: found -1"),
        ("set", {"mode": "evry"}, "did you mean every?"),
        ("set", {"treshold": 0.5}, "did you mean threshold?"),
        ("set", {"threshold": 0.5, "performance": "low"}, "performance: unknown key"),
        ("set", {str(n): n for n in range(17)}, "17 arguments"),
        ("pause", {"for": 5}, "for: unknown key"),
        ("performance", None, "level: missing"),
        ("performance", {"level": "turbo"}, "level: found"),
        ("snapshot", {"camera": "attic"}, "no camera attic"),
        ("snapshot", {"camera": 1}, "camera: found 1"),
        ("pause", b" " * (MAX_BYTES + 1), "4097 bytes"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(name: str, arguments: object, said: str) -> None:
    controls = FakeControls()
    reply = reply_to(command(name, arguments), controls)
    assert reply.result is None
    assert said in reply.reason
    msgspec.json.encode(reply.reason)
    assert controls.asked in ([], ["snapshot"])


def test_a_retained_command_is_refused() -> None:
    controls = FakeControls()
    sent = command("restart", {}, retained=True)
    assert "retained" in reply_to(sent, controls).reason
    assert desk(controls).serve(replace(sent, payload=b""), 1000.0) is None  # clears it
    assert controls.asked == []


@pytest.mark.parametrize(
    "topic",
    [
        "edge/porch/status",
        "edge/porch/result",
        "edge/other/reply",
        "edge-cmd/other/restart",
        "homeassistant/device/x/config",
        "$SYS/x",
        "replies/+",
        "replies/#",
        "a\nb",
        "x" * 201,
    ],
)
def test_a_reply_cannot_be_sent_where_it_would_pass_for_something_else(topic: str) -> None:
    controls = FakeControls()
    reply = reply_to(command("pause", reply_topic=topic, correlation=b"7"), controls)
    assert (reply.topic, reply.correlation, reply.result) == ("", b"7", None)
    assert "response topic" in reply.reason
    assert controls.asked == []


def test_why_a_response_topic_is_refused() -> None:
    for topic, said in (
        ("$SYS/x", "allowed: one that does not begin with $"),
        ("edge/x", "allowed: none below edge/ edge-cmd/ homeassistant/"),
    ):
        reply = reply_to(command("pause", reply_topic=topic))
        assert reply.reason == f'response topic "{topic}"; {said}'


def test_a_reply_goes_where_it_is_wanted() -> None:
    reply = reply_to(command("pause", reply_topic="phone/replies", correlation=b"7"))
    assert (reply.topic, reply.correlation) == ("phone/replies", b"7")
    reply = reply_to(command("pause", reply_topic=OWN_REPLY))
    assert (reply.topic, reply.reason) == ("", "")


def test_long_correlation_data_is_refused_and_not_sent_back() -> None:
    reply = reply_to(command("pause", reply_topic="phone", correlation=b"7" * 257))
    assert (reply.correlation, reply.result) == (b"", None)


def test_ten_commands_a_second_are_served_and_no_more_in_any_second() -> None:
    controls = FakeControls()
    front = desk(controls)
    times_s = [50 + n / 128 for n in range(512)]  # four seconds
    replies = [(at_s, front.serve(command("pause"), at_s)) for at_s in times_s]
    served = [at_s for at_s, reply in replies if reply and not reply.reason]
    refused = [reply for _, reply in replies if reply and reply.reason]
    assert len(served) == len(controls.asked) == 40
    assert all(later - at_s >= 1 for at_s, later in zip(served, served[10:], strict=False))
    assert len(refused) == 4  # no flood of replies
    assert "more than 10" in refused[0].reason
    after = front.serve(command("pause"), 60.0)
    assert after is not None
    assert not after.reason


def test_refusals_are_told_at_once_and_then_counted_for_a_minute() -> None:
    front = desk()
    front.serve(command("boo"), 100.0)
    (first,) = front.events(100.0)
    assert first.kind == "command_refused"
    assert first.details["count"] == 1
    assert "boo" in first.message
    for n in range(50):
        front.serve(command("bah"), 101.0 + n)
    assert front.events(159.9) == []
    (second,) = front.events(160.0)
    assert (second.details["count"], second.details["command"]) == (50, "bah")
    assert front.events(500.0) == []


names = st.sampled_from(sorted(COMMANDS)) | st.text(max_size=80)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=10,
)
likely = st.dictionaries(
    st.sampled_from(["threshold", "top_k", "mode", "fps", "camera", "level", "x"]),
    json_values | st.sampled_from(["every", "max", "main"]) | st.floats(0, 1),
)
sound = st.sampled_from([json.dumps(arguments).encode() for arguments in GOOD.values()])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return sound arguments with a few bytes put in, taken out or repeated."""
    data = draw(sound)
    for _ in range(draw(st.integers(1, 3))):
        at, until = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        data = data[:at] + draw(st.binary(max_size=3) | st.just(data[at:until] * 2)) + data[until:]
    return data


payloads = (
    st.binary(max_size=5000)
    | (likely | json_values).map(lambda value: json.dumps(value).encode())
    | damaged()
)


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")))
@given(
    st.lists(
        st.builds(
            Received,
            topic=names.map(lambda name: PREFIX + name),
            payload=payloads,
            retained=st.booleans(),
            reply_topic=st.text(max_size=250),
            correlation=st.binary(max_size=300),
        ),
        max_size=15,
    )
)
def test_nothing_that_arrives_upsets_it(messages: list[Received]) -> None:
    controls = FakeControls()
    front = desk(controls)
    for number, message in enumerate(messages):
        reply = front.serve(message, 10 + 0.05 * number)
        if reply is None:
            continue
        assert bool(reply.reason) != (reply.result is not None)
        assert len(reply.reason) <= 500
        msgspec.json.encode([reply.command, reply.topic, reply.reason])  # can be sent
        if isinstance(reply.result, Settings):
            msgspec.convert(msgspec.to_builtins(reply.result), Settings)
            assert 0 <= reply.result.threshold <= 1
            assert 1 <= reply.result.top_k <= 1000
    assert len(front.events(1000.0)) <= 1
