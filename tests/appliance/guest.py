"""A whole machine in software: Debian 13 in QEMU, with power that can be cut.

    with Guest("cam-1", folder, image, qemu) as guest:
        guest.start()
        guest.run("systemctl is-system-running")
        guest.cut_power()
        guest.start()

The emulation (no KVM is needed) is 10 to 20 times slower than the machine it runs on.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_app.tools.processes import free_port
from tests.appliance.image import MACHINES, Image, debian_architecture
from tests.appliance.machine import Machine

_LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
_MEMORY_MB = 1536


class Guest(Machine):
    """One machine with a disk of its own. Nothing runs until `start`."""

    def __init__(self, name: str, folder: Path, image: Image, qemu: Path) -> None:
        """Copy the disk."""
        super().__init__(name, folder, image, free_port())
        self._qemu = qemu
        self._process: subprocess.Popen[bytes] | None = None
        self._disk = folder / f"{name}.img"
        subprocess.run(["cp", "--sparse=always", image.disk, self._disk], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.cut_power()
        self._disk.unlink(missing_ok=True)

    def start(self) -> None:
        """Switch it on, and return once it can be logged in to."""
        assert self._process is None
        with (self.folder / f"{self.name}.qemu").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait_for_ssh(self._process)

    def cut_power(self) -> None:
        """Switch it off as a pulled plug does: nothing in it gets to do anything."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        self.hang_up()

    def _command(self) -> list[str]:
        """Return QEMU's command line; its program runs with the libraries of its own tree."""
        architecture = self.image.architecture
        libraries = self._qemu / "usr/lib" / f"{platform.machine()}-linux-gnu"
        loader = self._qemu / "usr/lib64" / _LOADERS[debian_architecture()]
        if not loader.exists():
            loader = libraries / _LOADERS[debian_architecture()]
        program = self._qemu / "usr/bin" / f"qemu-system-{MACHINES[architecture]}"
        return [
            *("env", f"QEMU_MODULE_DIR={libraries / 'qemu'}"),
            *(str(loader), "--library-path", str(libraries), str(program)),
            *("-L", str(self._qemu / "usr/share/qemu")),
            *("-L", str(self._qemu / "usr/share/seabios")),
            *_MACHINE_FLAGS[architecture],
            *("-accel", "tcg,thread=multi,tb-size=512", "-smp", "2", "-m", str(_MEMORY_MB)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self.console}"),
            *("-device", "virtio-rng-pci"),
            *("-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{self.ssh_port}-10.0.2.15:22"),
            *("-device", "virtio-net-pci,netdev=n0,romfile="),
            *("-drive", f"file={self._disk},if=none,id=d0,format=raw,cache=writeback"),
            *("-device", "nvme,drive=d0,serial=guest"),
            *("-kernel", str(self.image.kernel), "-append", self._kernel_line()),
        ]

    def _kernel_line(self) -> str:
        machine_id = hashlib.sha256(self.name.encode()).hexdigest()[:32]
        words = ["root=/dev/nvme0n1", "rw", "rootfstype=ext4", "quiet", "panic=-1"]
        words += [f"console={_CONSOLES[self.image.architecture]}"]
        words += ["mitigations=off", "audit=0", "nokaslr", "tsc=reliable", "no_timer_check"]
        words += ["systemd.unit=multi-user.target", f"systemd.hostname={self.name}"]
        words += [f"systemd.machine_id={machine_id}"]
        return " ".join(words)


_MACHINE_FLAGS = {
    "amd64": ("-machine", "q35", "-cpu", "max"),
    "arm64": ("-machine", "virt", "-cpu", "cortex-a76"),
}
_CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
