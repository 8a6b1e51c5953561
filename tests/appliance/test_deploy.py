"""What provisioning does to a fleet that works: nothing when nothing is new, and no harm."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.appliance.conftest import Fleet
from tests.appliance.controller import BUNDLE
from tests.appliance.machine import Machine

_CONFIG = "/etc/edge-app/config.toml"


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


def test_a_wrong_configuration_is_refused_before_it_takes_the_right_one_s_place(
    fleet: Fleet,
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
    fleet: Fleet, broken_wheel: Path
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
