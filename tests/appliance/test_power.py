"""Power that goes without a word."""

from __future__ import annotations

from tests.appliance.conftest import Fleet
from tests.appliance.machine import messages_waiting

_WAITING = 8  # it takes a quarter of a minute to say so many
_SAVED = 3  # of these, for certain: only the last second's may be declared lost


def test_after_a_power_cut_under_load_it_serves_again_and_no_number_is_missing(
    fleet: Fleet,
) -> None:
    """The broker is away when the power goes, so there are messages that only the device has."""
    _wait_until_all_is_heard(fleet)  # it may have been switched on just now
    fleet.hub.run("systemctl stop mosquitto")
    try:
        fleet.cam_1.wait_for_unit(lambda unit: messages_waiting(unit) >= _WAITING)
        boot = fleet.cam_1.run("cat /proc/sys/kernel/random/boot_id")
        fleet.cam_1.cut_power()
    finally:
        fleet.hub.run("systemctl start mosquitto")
    last = fleet.ear.numbered("cam-1")[-1]

    fleet.cam_1.start()

    assert fleet.cam_1.run("cat /proc/sys/kernel/random/boot_id") != boot
    _wait_until_all_is_heard(fleet)
    assert fleet.ear.unaccounted("cam-1") == []
    heard = {each["seq"] for each in fleet.ear.numbered("cam-1")}
    assert {last["seq"] + number for number in range(1, _SAVED + 1)} <= heard


def _wait_until_all_is_heard(fleet: Fleet) -> None:
    """Wait until cam-1 serves and nothing of what it said before is on its way any more."""
    fleet.cam_1.wait_for_unit(lambda it: "fps" in it["StatusText"] and not messages_waiting(it))
    # Messages come in order, so with the next result all that waited was heard.
    fleet.ear.wait_for("cam-1", "result", since=fleet.ear.mark())
