"""Puts commands into effect on the running appliance. Used from the loop's thread."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec
from msgspec import Struct

from edge_app.commands import Refused, Restarting, SelfTest, SnapshotTaken, Work
from edge_app.desk import Desk, Reply
from edge_app.domain import Frame, Label, Message, Performance, Publisher
from edge_app.errands import Errands
from edge_app.errors import EdgeAppError
from edge_app.loop import Loop
from edge_app.publish import wire
from edge_app.publish.discovery import BIRTH
from edge_app.recorder import FlightRecord, Recorder
from edge_app.sensors.clock import read_clock
from edge_app.settings import Gate, Settings
from edge_app.snapshot import snapshot

log = logging.getLogger(__name__)

_BIRTH_DELAY_S = 5.0  # at most; a fleet should not answer in one moment


@dataclass(frozen=True, slots=True)
class Parts:
    """What commands act on.

    `newest_frames`: of every camera, None before the first. `look_at`: infers on one frame, from
    the errands' thread; raises EdgeAppError. `reopen`: opens the Edge TPU again at
    another clock; None when none is in use. `settings_changed` is told every new value.
    """

    loop: Loop
    gate: Gate
    recorder: Recorder
    newest_frames: Callable[[], Mapping[str, Frame | None]]
    look_at: Callable[[Frame], tuple[Label, ...]]
    selftest: Callable[[], SelfTest]
    reopen: Callable[[Performance], None] | None
    settings_changed: Callable[[Settings], None]
    restart: Callable[[], None]


class Panel:
    """The controls of a running appliance; see `commands.Controls`."""

    def __init__(
        self, parts: Parts, settings: Settings, topics: wire.Topics, publisher: Publisher
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._topics = topics
        self._publisher = publisher

    @property
    def has_edgetpu(self) -> bool:
        return self._parts.reopen is not None

    def change(self, **changes: object) -> Settings:
        level = changes.get("performance")
        if level is not None and self._parts.reopen is None:
            raise Refused("no Edge TPU is in use here, so there is no clock to set")
        before = self._settings
        self._settings = after = msgspec.structs.replace(before, **changes)
        if after == before:
            return after
        log.info("settings changed to %s", msgspec.json.encode(after).decode())
        parts = self._parts
        parts.gate.fps, parts.gate.paused = after.fps, after.paused
        parts.loop.rules = replace(
            parts.loop.rules, threshold=after.threshold, top_k=after.top_k, mode=after.mode
        )
        if parts.reopen and after.performance and after.performance != before.performance:
            parts.reopen(after.performance)
        parts.settings_changed(after)
        return after

    def snapshot(self, camera: str) -> Work:
        frames = self._parts.newest_frames()
        name = camera or next(iter(frames))
        if name not in frames:
            raise Refused(f'camera: found "{name}"; allowed: {", ".join(frames)}')
        frame = frames[name]
        if frame is None:
            raise Refused(f"camera {name} has not given a frame yet")

        def work() -> SnapshotTaken:
            try:
                labels = self._parts.look_at(frame)
            except EdgeAppError as error:
                labels = None
                log.warning("snapshot without a label: %s", error)
            jpeg, size_px = snapshot(frame.pixels, _caption(frame, labels))
            self._offer_soon(wire.snapshot_message(self._topics, jpeg))
            return SnapshotTaken(name, frame.seq, labels, size_px, len(jpeg))

        return work

    def _offer_soon(self, message: Message) -> None:
        self._parts.loop.call_soon(lambda: self._publisher.offer(message))

    def selftest(self) -> Work:
        return self._parts.selftest

    def restart(self) -> Restarting:
        log.info("a command asks for a restart")
        self._parts.restart()
        return Restarting(supervised="NOTIFY_SOCKET" in os.environ)  # systemd sets it

    def dump(self) -> FlightRecord:
        return self._parts.recorder.record("command")


def _caption(frame: Frame, labels: tuple[Label, ...] | None) -> list[str]:
    where = f"{frame.camera}  {wire.utc(frame.captured_ns, read_clock())}"
    if labels is None:
        return ["not inferred", where]
    return [f"{labels[0].label}  {labels[0].score:.2f}" if labels else "nothing known", where]


class Reception:
    """Takes in what the publisher received, tells apart what it is, and sends the replies."""

    def __init__(
        self,
        publisher: Publisher,
        topics: wire.Topics,
        *,
        desk: Desk,
        loop: Loop,
        errands: Errands,
        announce: Callable[[], None],
    ) -> None:
        """`announce` says again what somebody who has just started cannot know."""
        self._publisher = publisher
        self._topics = topics
        self._desk = desk
        self._loop = loop
        self._errands = errands
        self._announce = announce
        self._announcing = False

    def take_in(self) -> None:
        """Serve what has come in since the last time."""
        for received in self._publisher.received():
            if received.topic.startswith(self._topics.commands):
                reply = self._desk.serve(received, time.monotonic())
                if reply is not None:
                    self._answer(reply)
            elif received.payload == BIRTH and not self._announcing:
                self._announcing = True
                delay_s = random.uniform(0, _BIRTH_DELAY_S)  # noqa: S311
                self._loop.call_later(delay_s, self._announce_now)

    def _announce_now(self) -> None:
        self._announcing = False
        self._announce()

    def _answer(self, reply: Reply) -> None:
        work = reply.result
        if work is None or isinstance(work, Struct):
            self._send(reply)
        elif not self._errands.add(lambda: self._work_off(reply, work)):
            self._send(replace(reply, result=None, reason="busy: other commands wait already"))

    def _work_off(self, reply: Reply, work: Work) -> None:
        """Do the slow part of a command, in the errands' thread."""
        done = replace(reply, result=None, reason="a bug; the log has its traceback")
        try:
            done = replace(reply, result=work())
        except (Refused, EdgeAppError) as error:
            done = replace(reply, result=None, reason=str(error))
        finally:
            self._loop.call_soon(lambda: self._send(done))

    def _send(self, reply: Reply) -> None:
        self._publisher.offer(
            wire.reply_message(
                reply.topic or self._topics.reply,
                time.monotonic_ns(),
                read_clock(),
                command=reply.command,
                result=reply.result,
                reason=reply.reason,
                correlation=reply.correlation,
            )
        )
