"""A machine as quick as this one: the guest's Debian in a container, booted with its own systemd.

It shares the kernel and the network of the machine the test runs on, so it cannot show a camera, a
boot or a power cut. It is the fleet's broker, and a second device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_app.tools.processes import free_port
from tests.appliance.image import Image
from tests.appliance.machine import Machine

_SHUTDOWN_S = 30.0
# The network is not its own to configure.
_MASKED = ("systemd-networkd.service", "systemd-networkd.socket")


class Container(Machine):
    """One container with files of its own. Nothing runs until `start`."""

    def __init__(self, name: str, folder: Path, image: Image) -> None:
        """Copy the files."""
        super().__init__(name, folder, image, free_port())
        self._process: subprocess.Popen[bytes] | None = None
        self._tree = folder / name
        subprocess.run(["cp", "-a", "--reflink=auto", image.tree, self._tree], check=True)
        sshd = self._tree / "etc/ssh/sshd_config.d"
        (sshd / "port.conf").write_text(f"Port {self.ssh_port}\nListenAddress 127.0.0.1\n")
        (self._tree / "etc/hostname").write_text(f"{name}\n")
        for unit in _MASKED:
            link = self._tree / "etc/systemd/system" / unit
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._tree)

    def start(self) -> None:
        """Start it, and return once it can be logged in to."""
        assert self._process is None
        command = ["systemd-nspawn", "--quiet", "--boot", "-D", str(self._tree), "-M", self.name]
        command += ["--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off"]
        with self.console.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        self.wait_for_ssh(self._process)

    def stop(self) -> None:
        """Shut it down."""
        if self._process is None:
            return
        self.hang_up()
        self._process.terminate()
        try:
            self._process.wait(_SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
