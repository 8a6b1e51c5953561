"""What is said of the way to the broker, and how often."""

from __future__ import annotations

import logging

import pytest

from edge_app.publish.link import Broker
from edge_app.publish.trouble import Status


@pytest.fixture
def status(caplog: pytest.LogCaptureFixture) -> Status:
    caplog.set_level(logging.WARNING)
    return Status(Broker("h", 1883, "edge-app-t"))


def test_a_refusal_is_told_again_once_a_message_was_taken(
    status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        status.refused("a", "a: no")
        status.refused("b", "b: no")
    status.taken("a")
    status.refused("a", "a: no")
    status.refused("b", "b: never")
    told = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert told == ["a: no", "b: no", "a: no", "b: never"]
    assert status.trouble == "b: never"


def test_topics_that_others_think_up_do_not_fill_the_log(
    status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1000):
        status.refused(f"topic {number}", f"{number}: no")
    assert len(caplog.records) == 32
    assert status.trouble == "999: no"


def test_what_is_done_about_a_failure_is_said_once(
    status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    status.cannot("away")
    status.cannot("refused", "asking again every minute")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "broker h:1883: away; trying on",
        "broker h:1883: refused; asking again every minute",
    ]
