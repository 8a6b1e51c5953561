"""Power that goes without a word."""

from __future__ import annotations

from tests.appliance.conftest import Fleet
from tests.appliance.machine import messages_waiting

_ON_ITS_WAY = 3


def test_after_a_power_cut_under_load_it_serves_again_and_no_number_is_missing(
    fleet: Fleet,
) -> None:
    """The broker is away when the power goes, so there are messages that only the device has."""
    # It may have been switched on just now, with numbers of its own to declare lost.
    fleet.cam_1.wait_for_unit(lambda it: "fps" in it["StatusText"] and not messages_waiting(it))
    fleet.ear.wait_for("cam-1", "result", since=fleet.ear.mark())
    fleet.hub.run("systemctl stop mosquitto")
    try:
        fleet.cam_1.wait_for_unit(lambda unit: messages_waiting(unit) >= _ON_ITS_WAY)
        boot = fleet.cam_1.run("cat /proc/sys/kernel/random/boot_id")
        fleet.cam_1.cut_power()
    finally:
        fleet.hub.run("systemctl start mosquitto")
    last = fleet.ear.numbered("cam-1")[-1]
    mark = fleet.ear.mark()

    fleet.cam_1.start()

    assert fleet.cam_1.run("cat /proc/sys/kernel/random/boot_id") != boot
    fleet.cam_1.wait_for_unit(lambda unit: unit["ActiveState"] == "active")
    # Messages come in order, so by the first result of this boot all that waited was heard.
    fleet.ear.wait_for(
        "cam-1", "result", lambda it: it.fields()["uptime_ms"] < last["uptime_ms"], since=mark
    )
    assert fleet.ear.unaccounted("cam-1") == []
    # Of what waited, only the last second's may be declared lost.
    heard = {each["seq"] for each in fleet.ear.numbered("cam-1")}
    assert {last["seq"] + number for number in range(1, _ON_ITS_WAY)} <= heard
