"""A stand-in Edge TPU for a machine: a service in the device's place.

To the machine it is plugged in like the real one: our playbooks install its library, libedgetpu's
stand-in, and the appliance finds the device through it. Stopping the service is pulling the cable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_app import catalog
from tests.appliance.image import ROOT
from tests.appliance.machine import Machine
from tests.standin.edgetpu import build
from tests.standin.edgetpu.compile import compiled

UNIT = "edgetpu-standin"
_COMPILERS = {"amd64": "gcc", "arm64": "aarch64-linux-gnu-gcc"}
_MODEL = "/srv/models/mobilenet"
_PROGRAM = "/srv/edgetpu-standin"

# It runs with the appliance's own interpreter and runtime, as soon as they are there. Anybody may
# use it, which is our udev rules' business with a real one.
_SERVICE = f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
WorkingDirectory={_PROGRAM}
RuntimeDirectory={UNIT}
UMask=0000
ExecStart=/opt/edge-app/current/bin/python -m tests.standin.edgetpu.device \
/run/{UNIT} {_MODEL}.tflite auto 0 0
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
"""
_TOLD = f"[Service]\nEnvironment=EDGETPU_STANDIN=/run/{UNIT}\n"


def plug_in(machine: Machine) -> Mapping[str, Any]:
    """Give it to a machine; return what the machine's owner adds to the inventory."""
    files = catalog.resolve("mobilenet_v2_1.0_224")
    assert files.cpu is not None
    assert files.labels_file is not None
    cpu = files.cpu.read_bytes()
    sources = sorted((ROOT / "tests/standin/edgetpu").glob("*.py"))
    machine.unpack(
        {
            **{f"{_PROGRAM}/{path.relative_to(ROOT)}": path.read_bytes() for path in sources},
            f"{_MODEL}.tflite": cpu,
            f"{_MODEL}_edgetpu.tflite": compiled(cpu),
            f"{_MODEL}.txt": files.labels_file.read_bytes(),
            f"/etc/systemd/system/{UNIT}.service": _SERVICE.encode(),
            "/etc/systemd/system/edge-app.service.d/edgetpu-standin.conf": _TOLD.encode(),
        }
    )
    machine.run(f"systemctl daemon-reload && systemctl enable --now {UNIT}")
    library = _library(machine)
    return {
        "coral_interface": "usb",
        "coral_library": "own",
        "coral_library_file": str(library),
        "coral_library_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "edge_app_gate_backend": "edgetpu",
    }


def model() -> Mapping[str, str]:
    """Return the configuration's section of the model that was brought along."""
    return {"name": f"{_MODEL}.tflite", "labels": f"{_MODEL}.txt", "backend": "auto"}


def _library(machine: Machine) -> Path:
    return build(compiler=_COMPILERS[machine.image.architecture]) / "libedgetpu.so.1"
