"""The spool between its two threads: the keeper's steps and the network's, in every order.

The keeper does one thing at a time, each in two halves (it asks the spool, then tells it what the
disk did); what the network does may fall between them. The disk is a dictionary here.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_app.domain import Message
from edge_app.publish.spool import Spool
from tests.spools import record

KEEPER_RESTS = precondition(lambda self: self.half_done is None)
PAGE_ROWS = 3


class SpoolSteps(RuleBasedStateMachine):
    """`waiting` and `in_flight` are what a spool without a disk would hold, by number."""

    def __init__(self) -> None:
        super().__init__()
        self.spool = Spool(10_000_000)
        self.disk: dict[int, Message] = {}
        self.waiting: list[int] = []
        self.in_flight: list[int] = []
        self.half_done: Any = None  # what the keeper has yet to tell the spool

    @rule(count=st.integers(1, 5))
    def append(self, count: int) -> None:
        for number in range(count):
            self.waiting.append(self.spool.append(record(number)))

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        for _ in range(count):
            taken = self.spool.take()
            if taken is None:  # all are taken, or a page must be read first
                return
            assert taken[0] == next(seq for seq in self.waiting if seq not in self.in_flight)
            self.in_flight.append(taken[0])

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def ack(self, data: Any) -> None:
        seq = data.draw(st.sampled_from(self.in_flight))
        self.spool.ack(seq)
        self.in_flight.remove(seq)
        self.waiting.remove(seq)

    @rule()
    def rewind(self) -> None:
        self.spool.rewind()
        self.in_flight.clear()

    @KEEPER_RESTS
    @rule(limit=st.integers(1, 6))
    def save(self, limit: int) -> None:
        if rows := self.spool.newest_rows(limit):
            self.disk.update(rows)
            self.half_done = lambda: self.spool.rows_added(rows, 10 * len(rows))

    @KEEPER_RESTS
    @rule()
    def remove(self) -> None:
        if acked := self.spool.acked_rows():
            for seq in acked:
                del self.disk[seq]
            self.half_done = lambda: self.spool.rows_removed(acked, 10 * len(acked))

    @KEEPER_RESTS
    @rule()
    def read_page(self) -> None:
        if (wanted := self.spool.page_wanted()) is not None:
            after, token = wanted
            page = [(seq, self.disk[seq]) for seq in sorted(self.disk) if seq > after][:PAGE_ROWS]
            self.half_done = lambda: self.spool.page_read(page, token)

    @precondition(lambda self: self.half_done is not None)
    @rule()
    def tell(self) -> None:
        self.half_done()
        self.half_done = None

    @invariant()
    def as_many_wait(self) -> None:
        assert self.spool.state().queued == len(self.waiting)

    def teardown(self) -> None:
        """Everything that waits comes, in order, once."""
        if self.half_done is not None:
            self.tell()
        self.rewind()
        while self.waiting:
            self.read_page()
            if self.half_done is not None:
                self.tell()
            before = len(self.waiting)
            self.take(1)
            assert self.in_flight or self.spool.page_wanted() is not None, "nothing comes"
            for seq in list(self.in_flight):
                self.spool.ack(seq)
                self.in_flight.remove(seq)
                self.waiting.remove(seq)
            assert len(self.waiting) <= before
        assert self.spool.take() is None


TestSpoolSteps = SpoolSteps.TestCase
TestSpoolSteps.settings = settings(max_examples=150, stateful_step_count=40)
