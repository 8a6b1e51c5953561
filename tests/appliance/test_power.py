"""Power that goes without a word, and a disk that lasts."""

from __future__ import annotations

import time

from tests.appliance.conftest import Fleet
from tests.appliance.guest import Guest

_IDLE_S = 300.0
_SECTOR_BYTES = 512
# What an ext4 and a systemd without the appliance write in that time.
_IDLE_MAX_BYTES = 100_000
_ON_ITS_WAY = 3


def test_after_a_power_cut_under_load_it_serves_again_and_no_number_is_missing(
    fleet: Fleet,
) -> None:
    """The broker is away when the power goes, so there are messages that only the device has."""
    fleet.hub.run("systemctl stop mosquitto")
    try:
        fleet.cam_1.wait_for_unit(
            lambda unit: f" {_ON_ITS_WAY} messages wait" in unit["StatusText"]
        )
        boot = fleet.cam_1.run("cat /proc/sys/kernel/random/boot_id")
        fleet.cam_1.cut_power()
    finally:
        fleet.hub.run("systemctl start mosquitto")
    known = [each["seq"] for each in fleet.ear.numbered("cam-1")]
    mark = fleet.ear.mark()

    fleet.cam_1.start()

    assert fleet.cam_1.run("cat /proc/sys/kernel/random/boot_id") != boot
    fleet.cam_1.wait_for_unit(lambda unit: unit["ActiveState"] == "active")
    fleet.ear.wait_for("cam-1", "result", since=mark)
    fleet.ear.wait_for("cam-1", "status", lambda it: it.payload == b"online", since=mark)
    assert fleet.ear.unaccounted("cam-1") == []
    assert fleet.ear.numbered("cam-1")[-1]["seq"] > max(known)


def test_five_minutes_of_service_write_nothing_to_the_disk(fleet: Fleet) -> None:
    """It serves all the while, its journal is in memory; the whole disk's writes are counted."""
    fleet.cam_1.run("journalctl --header | grep -q /run/log/journal && sync")
    before_bytes = _written_bytes(fleet.cam_1)
    mark = fleet.ear.mark()

    time.sleep(_IDLE_S)  # the time itself is what is tested

    assert len(fleet.ear.messages("cam-1", "result", mark)) > _IDLE_S / 20
    assert _written_bytes(fleet.cam_1) - before_bytes <= _IDLE_MAX_BYTES


def _written_bytes(guest: Guest) -> int:
    guest.run("sync")
    return _SECTOR_BYTES * int(guest.run("cat /sys/block/nvme0n1/stat").split()[6])
