"""The spool against a list: whatever happens in whatever order, the same messages wait."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.spools import drained, events, record, spool_at, take, wait_until, wait_until_saved


class SpoolModel(RuleBasedStateMachine):
    """`waiting` and `in_flight` are what a spool without a disk, a thread or pages would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.lives = 0
        self.waiting: list[int] = []  # not acknowledged, by seq
        self.in_flight: list[int] = []
        self.next_seq = 1
        self.open(self.folder / "0")

    def open(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / "spool.db"
        self.running = ExitStack()
        self.spool = self.running.enter_context(spool_at(self.path, tick_s=0.002))

    @rule(count=st.sampled_from([1, 2, 5, 700]))
    def append(self, count: int) -> None:
        for number in range(count):
            assert self.spool.append(record(number)) == self.next_seq
            self.waiting.append(self.next_seq)
            self.next_seq += 1

    @rule(count=st.integers(1, 40))
    def take(self, count: int) -> None:
        untaken = [seq for seq in self.waiting if seq not in self.in_flight]
        for expected in untaken[:count]:
            taken = take(self.spool, len(self.in_flight))
            assert taken is not None
            assert taken[0] == json.loads(taken[1].payload)["seq"] == expected
            self.in_flight.append(expected)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def ack(self, data: Any) -> None:
        acked = data.draw(st.lists(st.sampled_from(self.in_flight), min_size=1, unique=True))
        for seq in acked:
            self.spool.ack(seq)
            self.spool.ack(seq)  # saying it twice changes nothing
            self.in_flight.remove(seq)
            self.waiting.remove(seq)

    @rule()
    def rewind(self) -> None:
        self.spool.rewind()
        self.in_flight.clear()

    @rule()
    def settle(self) -> None:
        wait_until_saved(self.spool)

    @rule()
    def restart(self) -> None:
        self.running.close()
        self.in_flight.clear()
        self.open(self.path.parent)

    @rule()
    def crash(self) -> None:
        """Go on from a copy of the files, taken while nothing is being written."""
        wait_until_saved(self.spool)
        wait_until(lambda: not self.spool.acked_rows())
        self.lives += 1
        folder = self.folder / str(self.lives)
        shutil.copytree(self.path.parent, folder)
        self.running.close()
        self.in_flight.clear()
        self.open(folder)
        # The event about unused numbers is the only addition.
        self.waiting.append(self.spool.next_seq() - 1)
        self.next_seq = self.spool.next_seq()

    @invariant()
    def as_many_wait(self) -> None:
        assert self.spool.state().queued == len(self.waiting)
        assert self.spool.state().dropped == 0

    def teardown(self) -> None:
        self.spool.rewind()
        payloads = drained(self.spool)
        assert [payload["seq"] for payload in payloads] == self.waiting
        assert {event["event"] for event in events(payloads)} <= {"spool_gap"}
        self.running.close()
        self.stack.close()


TestSpoolModel = SpoolModel.TestCase
TestSpoolModel.settings = settings(max_examples=12, stateful_step_count=25)
