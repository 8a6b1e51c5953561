from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_app.domain import Delivery, Message
from edge_app.publish.spool import Spool


def message(size: int = 10) -> Message:
    return Message("t", b'{"x":"%s"}' % (b"x" * size), Delivery.SPOOLED)


def taken(spool: Spool) -> list[int]:
    found = []
    while (entry := spool.take()) is not None:
        found.append(entry[0])
    return found


def test_messages_are_numbered_and_come_out_in_order() -> None:
    spool = Spool(1_000_000, first_seq=7)
    assert [spool.append(message()) for _ in range(3)] == [7, 8, 9]
    entry = spool.take()
    assert entry is not None
    assert json.loads(entry[1].payload) == {"seq": 7, "x": "x" * 10}
    assert taken(spool) == [8, 9]


def test_what_is_acknowledged_is_gone_and_the_rest_comes_again() -> None:
    spool = Spool(1_000_000)
    for _ in range(4):
        spool.append(message())
    assert taken(spool) == [1, 2, 3, 4]
    spool.ack(1)
    spool.rewind()
    assert taken(spool) == [2, 3, 4]
    for seq in (2, 3, 4, 4, 99):
        spool.ack(seq)
    spool.rewind()
    assert taken(spool) == []
    assert (spool.state().queued, spool.state().bytes) == (0, 0)
    assert spool.append(message()) == 5
    assert taken(spool) == [5]


def test_acknowledged_out_of_order() -> None:
    spool = Spool(1_000_000)
    for _ in range(3):
        spool.append(message())
    assert taken(spool) == [1, 2, 3]
    spool.ack(2)
    spool.rewind()
    assert taken(spool) == [1, 3]


def test_full_means_the_oldest_go_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(5_000)
    for _ in range(100):
        spool.append(message(100))
    state = spool.state()
    assert state.bytes <= 5_000
    assert state.queued + state.dropped == 100
    assert taken(spool) == list(range(state.dropped + 1, 101))
    assert len(caplog.records) == 1  # said once, not ninety times


def test_one_message_larger_than_the_bound_is_kept() -> None:
    spool = Spool(10)
    spool.append(message(1000))
    spool.append(message(1000))
    assert taken(spool) == [2]


@given(st.lists(st.sampled_from(["append", "take", "ack", "ack-newest", "rewind"]), max_size=80))
def test_whatever_happens_nothing_unacknowledged_is_lost(steps: list[str]) -> None:
    spool, next_seq = Spool(1_000_000), 1
    waiting: list[int] = []
    out: list[int] = []
    for step in steps:
        if step == "append":
            assert spool.append(message()) == next_seq
            waiting.append(next_seq)
            next_seq += 1
        elif step == "take":
            entry = spool.take()
            if entry is not None:
                assert entry[0] in waiting
                assert all(entry[0] > seq for seq in out)
                out.append(entry[0])
        elif step.startswith("ack") and out:
            seq = out.pop(0 if step == "ack" else -1)
            spool.ack(seq)
            waiting.remove(seq)
        elif step == "rewind":
            spool.rewind()
            out.clear()
        assert spool.state().queued == len(waiting)
    spool.rewind()
    assert taken(spool) == waiting
