"""The appliance as systemd's service, on a machine with a camera and a broker elsewhere."""

from __future__ import annotations

import re

from tests.appliance.conftest import CAMERA, Fleet, needs_camera
from tests.appliance.ear import Heard

_EXIT_UNAVAILABLE = "69"
_OUR_PROCESSES = "cat /sys/fs/cgroup$(systemctl show -P ControlGroup edge-app)/cgroup.procs"
# Of itself the service says much more at its end: the stacks of all its threads.
_SYSTEMD_SAYS = "journalctl _PID=1 UNIT=edge-app.service -o cat --no-pager -n 20"
_PULLED = "/run/software-camera-pulled"


def test_what_the_camera_sees_reaches_the_broker_through_mutual_tls(fleet: Fleet) -> None:
    heard = fleet.ear.wait_for("cam-1", "result", since=0).fields()

    assert heard["camera"] == "main"
    # The photo that libcamera shows, as the golden images of the model have it.
    assert heard["labels"][0]["label"] == "Egyptian cat"
    info = fleet.ear.wait_for("cam-1", "info", since=0).fields()
    assert info["cameras"]["main"]["source"] == CAMERA
    status = fleet.ear.wait_for("cam-1", "status", since=0)
    assert status.payload == b"online"


def test_it_is_ready_after_its_first_inference_and_says_how_it_fares(fleet: Fleet) -> None:
    unit = fleet.cam_1.wait_for_unit(lambda unit: "fps" in unit["StatusText"])

    assert unit["Type"] == "notify"
    assert unit["ActiveState"] == "active"
    assert re.match(r"(cpu|edgetpu); [0-9.]+ fps, p95 [0-9.]+ ms; broker: ", unit["StatusText"])


def test_the_running_service_is_confined(fleet: Fleet) -> None:
    said = fleet.cam_1.run("systemd-analyze security edge-app --no-pager")
    exposure = re.search(r"Overall exposure level for edge-app.service: ([0-9.]+)", said)

    assert exposure is not None
    assert float(exposure[1]) <= 1.5
    unit = fleet.cam_1.unit()
    status = fleet.cam_1.run(f"cat /proc/{unit['MainPID']}/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    owner = fleet.cam_1.run(f"stat -c %U /proc/{unit['MainPID']}")
    assert owner == "edge-app\n"


def test_it_finds_nothing_wrong_with_itself_when_it_is_asked_to(fleet: Fleet) -> None:
    """From within its confinement."""
    reply = fleet.ear.command("cam-1", "selftest")

    assert reply["ok"], reply
    assert reply["result"]["passed"], reply


def test_nothing_of_ours_listens(fleet: Fleet) -> None:
    """Not the appliance, nor anything else that provisioning brought to a device."""
    for machine in (fleet.cam_1, fleet.hub):
        ours = machine.run(_OUR_PROCESSES).split()
        sockets = machine.run("ss -Hlntpx").splitlines()
        listening = [line for line in sockets if " LISTEN " in f" {line} "]  # not those that send

        assert ours
        assert listening
        assert not [line for line in listening if _owners(line) & set(ours)]
    on_device = fleet.cam_1.run("ss -Hlnt").splitlines()
    assert {line.split()[3].rpartition(":")[2] for line in on_device} == {"22"}


def test_a_stopped_loop_is_killed_by_the_watchdog_and_started_again(fleet: Fleet) -> None:
    before = fleet.cam_1.unit()
    mark = fleet.ear.mark()

    fleet.cam_1.run(f"kill -STOP {before['MainPID']}")

    after = fleet.cam_1.wait_for_unit(lambda unit: unit["NRestarts"] != before["NRestarts"])
    assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1
    assert "Watchdog timeout" in fleet.cam_1.run(_SYSTEMD_SAYS)
    fleet.ear.wait_for("cam-1", "result", since=mark)
    assert fleet.ear.unaccounted("cam-1") == []


def test_a_killed_service_is_started_again(fleet: Fleet) -> None:
    before = fleet.cam_1.unit()
    mark = fleet.ear.mark()

    fleet.cam_1.run(f"kill -KILL {before['MainPID']}")

    fleet.cam_1.wait_for_unit(
        lambda unit: unit["NRestarts"] != before["NRestarts"] and unit["ActiveState"] == "active"
    )
    fleet.ear.wait_for("cam-1", "result", since=mark)
    assert fleet.ear.unaccounted("cam-1") == []


@needs_camera
def test_a_camera_that_yields_nothing_ends_in_a_restart_and_comes_back_with_its_cable(
    fleet: Fleet,
) -> None:
    before = fleet.cam_1.unit()
    mark = fleet.ear.mark()
    try:
        fleet.cam_1.run(f"touch {_PULLED}")
        stalled = fleet.cam_1.wait_for_unit(lambda unit: unit["NRestarts"] != before["NRestarts"])
    finally:
        fleet.cam_1.run(f"rm -f {_PULLED}")

    assert stalled["ExecMainStatus"] in (_EXIT_UNAVAILABLE, "0")  # 0: another has begun by now
    assert f"status={_EXIT_UNAVAILABLE}" in fleet.cam_1.run(_SYSTEMD_SAYS)
    said = fleet.ear.wait_for("cam-1", "event", since=mark, wanted=_is_a_stall).fields()
    assert "no frame for" in said["message"]
    again = fleet.ear.mark()
    fleet.ear.wait_for("cam-1", "result", since=again)
    assert fleet.ear.unaccounted("cam-1") == []


def _is_a_stall(message: Heard) -> bool:
    return bool(message.fields()["event"] == "camera_stalled")


def _owners(line: str) -> set[str]:
    return set(re.findall(r"pid=(\d+)", line))
