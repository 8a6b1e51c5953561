"""An Edge TPU that comes and goes on a machine whose service knows it by its library only."""

from __future__ import annotations

from collections.abc import Callable

from tests.appliance import accelerator
from tests.appliance.conftest import Fleet
from tests.appliance.ear import Heard

_PULL = f"systemctl kill -s KILL {accelerator.UNIT}; systemctl stop {accelerator.UNIT}"
_PLUG_IN = f"systemctl start {accelerator.UNIT}"
_RESET_WANTED = "/run/edge-app/usb-reset-wanted"


def test_the_edge_tpu_answers_and_everybody_is_told(fleet: Fleet) -> None:
    heard = fleet.ear.wait_for("cam-1", "result", _is_by("edgetpu"), since=0).fields()

    assert heard["labels"][0]["label"] == "Egyptian cat"
    fleet.cam_1.wait_for_unit(lambda unit: unit["StatusText"].startswith("edgetpu; "))
    stats = fleet.ear.wait_for("cam-1", "stats", _serves, since=0).fields()["accelerator"]
    assert stats["canaries"] >= stats["promotions"] >= 1
    info = fleet.ear.wait_for("cam-1", "info", _lists_a_device, since=0).fields()["edgetpu"]
    assert "stand-in" in info["library_version"]
    assert info["problem"] == ""


def test_a_pulled_one_costs_no_frame_and_serves_again_once_it_is_back(fleet: Fleet) -> None:
    before = fleet.cam_1.unit()
    fleet.ear.wait_for("cam-1", "result", _is_by("edgetpu"), since=fleet.ear.mark())
    mark = fleet.ear.mark()
    try:
        fleet.cam_1.run(_PULL)
        failed = fleet.ear.wait_for("cam-1", "event", _is("fallback"), since=mark)
        pulled = fleet.ear.mark()
        fleet.ear.wait_for("cam-1", "result", _is_by("cpu"), since=pulled)
    finally:
        fleet.cam_1.run(_PLUG_IN)

    assert "transfer" in str(failed.fields())  # libedgetpu's last words
    fleet.ear.wait_for("cam-1", "event", _is("promoted"), since=pulled)
    fleet.ear.wait_for("cam-1", "result", _is_by("edgetpu"), since=pulled)
    assert fleet.ear.unaccounted("cam-1") == []
    after = fleet.cam_1.unit()
    assert (after["MainPID"], after["NRestarts"]) == (before["MainPID"], before["NRestarts"])


def test_the_service_may_ask_root_to_reset_the_port(fleet: Fleet) -> None:
    fleet.cam_1.run(f"runuser -u edge-app -- touch {_RESET_WANTED}")

    done = fleet.cam_1.wait_for_unit(
        lambda unit: unit["ExecMainExitTimestampMonotonic"] != "0", "edge-app-usb-reset"
    )
    assert (done["Result"], done["ExecMainStatus"]) == ("success", "0")
    assert "no Coral on USB" in fleet.cam_1.run(
        "journalctl -u edge-app-usb-reset -o cat --no-pager"
    )
    fleet.cam_1.run(f"! test -e {_RESET_WANTED}")


def _is_by(backend: str) -> Callable[[Heard], bool]:
    return lambda message: bool(message.fields()["backend"] == backend)


def _is(event: str) -> Callable[[Heard], bool]:
    return lambda message: bool(message.fields()["event"] == event)


def _serves(message: Heard) -> bool:
    return message.fields()["accelerator"]["state"] in ("promoted", "healthy")


def _lists_a_device(message: Heard) -> bool:
    return bool((message.fields().get("edgetpu") or {}).get("listed"))
