"""What provisioning does to a fleet that works: no harm, and nothing when nothing is new.

What is refused on one device does not concern the other, which is left alone for five minutes
meanwhile: whatever its disk is given to write then is the appliance's doing.
"""

from __future__ import annotations

import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.appliance.conftest import Fleet
from tests.appliance.controller import BUNDLE
from tests.appliance.guest import Guest
from tests.appliance.machine import Machine

_IDLE_S = 300.0
_SECTOR_BYTES = 512
# What an ext4 and a systemd without the appliance write in that time.
_IDLE_MAX_BYTES = 100_000
_CONFIG = "/etc/edge-app/config.toml"


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """When cam-1 began to be left alone, what its disk had written by then, what it had said."""

    since_s: float
    written_bytes: int
    mark: int


@pytest.fixture(scope="module")
def left_alone(fleet: Fleet) -> LeftAlone:
    """Begin to leave cam-1 alone."""
    fleet.cam_1.run("journalctl --header | grep -q /run/log/journal")  # it is in memory
    return LeftAlone(time.monotonic(), _written_bytes(fleet.cam_1), fleet.ear.mark())


def test_a_wrong_configuration_is_refused_before_it_takes_the_right_one_s_place(
    fleet: Fleet, left_alone: LeftAlone
) -> None:
    before = fleet.hub.unit()
    config = fleet.hub.run(f"cat {_CONFIG}")
    wrong = '{"edge_app_config": {"camera": {"main": {"source": "images:/", "fsp": 3}}}}'

    play = fleet.controller.play("rollout.yml", "--limit", "cam-2", "-e", wrong)

    assert play.returncode != 0
    assert "fsp" in play.output
    assert fleet.hub.run(f"cat {_CONFIG}") == config
    assert fleet.hub.unit()["MainPID"] == before["MainPID"]


def test_a_broken_release_goes_back_by_itself_and_no_other_device_gets_it(
    fleet: Fleet, left_alone: LeftAlone, broken_wheel: Path
) -> None:
    release = {machine.name: _release(machine) for machine in (fleet.hub, fleet.cam_1)}
    untouched = fleet.cam_1.unit()
    mark = fleet.ear.mark()

    play = fleet.controller.play(
        "rollout.yml", "-e", f"edge_app_wheel={broken_wheel}", "-e", "edge_app_gate_watch_s=5"
    )

    assert play.returncode != 0
    assert "rolled back" in play.output
    assert play.recap("cam-1") is None
    assert {machine.name: _release(machine) for machine in (fleet.hub, fleet.cam_1)} == release
    fleet.hub.wait_for_unit(lambda unit: unit["ActiveState"] == "active")
    fleet.ear.wait_for("cam-2", "status", lambda it: it.payload == b"online", since=mark)
    again = fleet.ear.mark()
    fleet.ear.wait_for("cam-2", "result", since=again)
    assert fleet.cam_1.unit()["MainPID"] == untouched["MainPID"]


def test_a_certificate_that_ends_soon_is_replaced_and_taken_up(
    fleet: Fleet, left_alone: LeftAlone
) -> None:
    before = (_serial(fleet.hub), fleet.hub.unit()["MainPID"])
    ends_too_soon = ["-e", "edge_app_certificate_renew_days=400"]  # it was made for 365

    play = fleet.controller.play(
        "rollout.yml", "--limit", "cam-2", *ends_too_soon, "-e", "edge_app_gate_watch_s=5"
    )

    assert play.returncode == 0, play.output
    assert "ends within 400 days" in play.output
    assert not {*before} & {_serial(fleet.hub), fleet.hub.unit()["MainPID"]}
    mark = fleet.ear.mark()
    fleet.ear.wait_for("cam-2", "result", since=mark)


def test_five_minutes_of_service_write_nothing_to_the_disk(
    fleet: Fleet, left_alone: LeftAlone
) -> None:
    time.sleep(max(0.0, left_alone.since_s + _IDLE_S - time.monotonic()))  # it is about time

    written_bytes = _written_bytes(fleet.cam_1) - left_alone.written_bytes
    assert written_bytes <= _IDLE_MAX_BYTES
    served = len(fleet.ear.messages("cam-1", "result", left_alone.mark))
    assert served > _IDLE_S / 20


def test_a_second_run_changes_nothing(fleet: Fleet) -> None:
    before = {machine.name: machine.unit()["MainPID"] for machine in (fleet.hub, fleet.cam_1)}

    play = fleet.controller.play("site.yml")

    assert play.returncode == 0, play.output
    assert play.changes() == []
    for host in ("hub", "cam-2", "cam-1"):
        recap = play.recap(host)
        assert recap is not None
        assert recap.changed == 0
    after = {machine.name: machine.unit()["MainPID"] for machine in (fleet.hub, fleet.cam_1)}
    assert after == before


@pytest.fixture
def broken_wheel(tmp_path: Path) -> Path:
    """Make a wheel that installs and says its version, and whose appliance ends as it starts."""
    (good,) = (BUNDLE / "wheels").glob("edge_app-*.whl")
    broken = tmp_path / good.name
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(broken, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename == "edge_app/appliance.py":
                data += b"\n\ndef run(*_, **__):\n    raise RuntimeError('broken on purpose')\n"
            target.writestr(item, data)
    return broken


def _release(machine: Machine) -> str:
    return machine.run("readlink -f /opt/edge-app/current")


def _serial(machine: Machine) -> str:
    return machine.run("openssl x509 -noout -serial -in /etc/edge-app/tls/client.crt")


def _written_bytes(guest: Guest) -> int:
    guest.run("sync")
    return _SECTOR_BYTES * int(guest.run("cat /sys/block/nvme0n1/stat").split()[6])
