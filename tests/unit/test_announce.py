"""When the appliance announces itself, and what it takes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from edge_app import config
from edge_app.announce import Announcer, memory_of
from edge_app.domain import Message
from edge_app.publish.wire import Topics
from edge_app.stats import Health, MqttState, Thermal
from edge_app.telemetry import Window
from tests.unit.test_discovery import HEALTH

TOPIC = "homeassistant/device/porch-cam/config"


class Desk:
    """An announcer, and what it did."""

    def __init__(self, folder: Path, *, mqtt: str = "", spool: str = "spool.db") -> None:
        path = folder / spool if spool else ""
        text = f"""
[device]
id = "porch-cam"
[camera.main]
source = "picamera:0"
[mqtt]
{mqtt or 'url = "mqtt://broker"'}
[spool]
path = "{path}"
"""
        self.offered: list[Message] = []
        self.newcomers = 0
        topics = Topics("edge", "porch-cam")
        settings = config.parse(text, "test")
        self.announcer = Announcer(
            settings, topics, self.offered.append, self.count, memory_of(settings)
        )

    def count(self, _delay_s: float) -> None:
        self.newcomers += 1

    def report(self, health: Health) -> None:
        read = self.announcer.hearing(lambda _window, _now_ns: health)
        assert read(Window(0), 0) is health

    def said(self) -> list[tuple[str, bool]]:
        """Return the topics of what was offered, and whether it was an announcement."""
        return [(message.topic, bool(message.payload)) for message in self.offered]


def test_it_announces_at_the_start_and_when_it_can_tell_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.announcer.start()
    desk.report(HEALTH)
    assert (desk.said(), desk.newcomers) == ([(TOPIC, True)], 1)
    hot = replace(HEALTH, thermal_c=Thermal(soc=50.0))
    desk.report(hot)
    desk.report(hot)
    desk.report(HEALTH)
    assert (desk.said(), desk.newcomers) == ([(TOPIC, True)] * 2, 2)
    assert "soc_temperature" in json.loads(desk.offered[-1].payload)["components"]


def test_to_who_has_just_come_it_says_what_it_knows_by_now(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.announcer.start()
    desk.report(replace(HEALTH, thermal_c=Thermal(soc=50.0)))
    desk.announcer.announce()
    assert desk.offered[-1] == desk.offered[-2]


def test_an_empty_prefix_takes_the_old_announcement_back(tmp_path: Path) -> None:
    Desk(tmp_path).announcer.start()
    desk = Desk(tmp_path, mqtt='url = "mqtt://broker"\ndiscovery_prefix = ""')
    desk.announcer.start()
    assert desk.said() == [(TOPIC, False)]
    assert desk.offered[0].retain


def test_another_prefix_takes_the_old_announcement_back(tmp_path: Path) -> None:
    Desk(tmp_path).announcer.start()
    desk = Desk(tmp_path, mqtt='url = "mqtt://broker"\ndiscovery_prefix = "ha"')
    desk.announcer.start()
    assert desk.said() == [(TOPIC, False), ("ha/device/porch-cam/config", True)]


def test_it_is_taken_back_until_the_broker_knows(tmp_path: Path) -> None:
    Desk(tmp_path).announcer.start()
    for mqtt, told in ((MqttState(0), True), (MqttState(1), True), (MqttState(1), False)):
        desk = Desk(tmp_path, mqtt='url = "mqtt://broker"\ndiscovery_prefix = ""')
        desk.announcer.start()
        assert bool(desk.offered) == told
        desk.report(replace(HEALTH, mqtt=mqtt))


def test_what_was_never_announced_is_not_taken_back(tmp_path: Path) -> None:
    desk = Desk(tmp_path, mqtt='url = "mqtt://broker"\ndiscovery_prefix = ""')
    desk.announcer.start()
    assert desk.offered == []
    assert list(tmp_path.iterdir()) == []


def test_with_the_spool_in_memory_nothing_is_written(tmp_path: Path) -> None:
    desk = Desk(tmp_path, spool="")
    desk.announcer.start()
    assert desk.said() == [(TOPIC, True)]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_is_no_reason_not_to_announce(tmp_path: Path) -> None:
    (tmp_path / "no-folder").write_text("")
    desk = Desk(tmp_path, spool="no-folder/spool.db")
    desk.announcer.start()
    assert desk.said() == [(TOPIC, True)]


def test_a_memory_of_nonsense_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "spool.db.announced").write_bytes(b"\xff\xfe")
    desk = Desk(tmp_path)
    desk.announcer.start()
    assert desk.said() == [(TOPIC, True)]
    assert (tmp_path / "spool.db.announced").read_text() == TOPIC + "\n"


def test_without_a_broker_there_is_nobody_to_announce_to(tmp_path: Path) -> None:
    desk = Desk(tmp_path, mqtt='url = ""')
    desk.announcer.start()
    assert desk.offered == []
