"""The fleet all tests here share: each test leaves it serving.

    hub    a container: the broker, and the device cam-2 with a camera of pictures
    cam-1  a guest in QEMU: a device with libcamera's software camera and a stand-in Edge TPU

Both are provisioned by our playbooks, from this machine, over ssh, as somebody's would be.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from edge_app.tools.processes import free_port
from tests.appliance import accelerator, image
from tests.appliance.container import Container
from tests.appliance.controller import BUNDLE, Controller, Play
from tests.appliance.ear import Ear, hearing
from tests.appliance.guest import Guest

ARCHITECTURE = os.environ.get("APPLIANCE_ARCH") or image.debian_architecture()
_PICTURES = "/usr/share/libcamera/pipeline/virtual/frames"
# Debian's kernel for arm64 that needs no initial ramdisk has no DMA heap, which picamera2 wants.
CAMERA = "picamera:0" if ARCHITECTURE == "amd64" else f"images:{_PICTURES}"
needs_camera = pytest.mark.skipif("picamera" not in CAMERA, reason="no DMA heap, so no camera")
# One frame in four seconds: MobileNetV2 takes half a second there, and systemd wants its turn.
_SLOW_FPS = 0.25


@dataclass(frozen=True, slots=True)
class Fleet:
    """A provisioned fleet. `first_run` is how the first site.yml ended."""

    controller: Controller
    first_run: Play
    hub: Container
    cam_1: Guest
    ear: Ear
    broker_port: int


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Take the place of the other tests' check: here machines outlive the tests, as they should."""


@pytest.fixture(scope="session")
def built() -> image.Image:
    """Return what machines are made from."""
    return image.image(ARCHITECTURE)


@pytest.fixture(scope="session")
def machine(built: image.Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Run the emulated machine; nothing of ours is on it yet."""
    folder = tmp_path_factory.mktemp("guest")
    with Guest("cam-1", folder, built, image.qemu_tree()) as guest:
        guest.start()
        yield guest


@pytest.fixture(scope="session")
def fleet(machine: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Provision everything from nothing, with site.yml."""
    folder = tmp_path_factory.mktemp("fleet")
    _make_bundle()
    with Container("hub", folder, image.image(image.debian_architecture())) as hub:
        hub.start()
        port = free_port()
        devices = {"hub": hub, "cam-2": hub, "cam-1": machine}
        inventory = _inventory(port, accelerator.plug_in(machine))
        controller = Controller(folder / "controller", inventory, devices)
        first_run = controller.play("site.yml")
        assert first_run.returncode == 0, first_run.output[-5000:]
        with hearing(port, controller.certificates("observer"), ["edge/#", "edge-cmd/#"]) as ear:
            yield Fleet(controller, first_run, hub, machine, ear, port)


def _make_bundle() -> None:
    machines = {image.MACHINES[name] for name in (ARCHITECTURE, image.debian_architecture())}
    platforms = [f"--platform=cp313-{machine}" for machine in sorted(machines)]
    command = ["make", "--no-print-directory", "bundle", f"ARGS={' '.join(platforms)}"]
    subprocess.run(command, cwd=image.ROOT, check=True, stdout=subprocess.DEVNULL)


def _inventory(port: int, of_accelerator: Mapping[str, Any]) -> dict[str, object]:
    """Return the groups. cam-2 comes first in a rollout, being quick."""
    return {
        "broker": {
            "hosts": {"hub": None},
            "vars": {
                "broker_port": port,
                "broker_names": ["IP:127.0.0.1", "IP:10.0.2.2"],
                "broker_people": [{"name": "observer", "may": "command"}],
                "broker_ca_dir": "{{ inventory_dir }}/ca",
            },
        },
        "devices": {
            "hosts": {
                "cam-2": {
                    "edge_app_broker_url": f"mqtts://127.0.0.1:{port}",
                    "edge_app_config": _config(f"images:{_PICTURES}", fps=1.0),
                    "device_time_sync": False,  # the clock of a container is its host's
                },
                "cam-1": {
                    "edge_app_broker_url": f"mqtts://10.0.2.2:{port}",
                    "edge_app_config": {
                        **_config(CAMERA, fps=_SLOW_FPS),
                        "model": accelerator.model(),
                    },
                    **of_accelerator,
                },
            },
            "vars": {
                "edge_app_ca_dir": "{{ inventory_dir }}/ca",
                "edge_app_bundle": str(BUNDLE),
                "edge_app_gate_watch_s": 35,  # a watchdog of 30 s would have struck
                "edge_app_gate_slower_by": 20.0,  # an emulated machine's pace says nothing
            },
        },
    }


def _config(source: str, fps: float) -> dict[str, object]:
    return {
        "camera": {"main": {"source": source, "fps": fps}},
        "publish": {"mode": "every"},
        "stats": {"interval_s": 5},
    }
