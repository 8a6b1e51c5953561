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
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.appliance.image import MACHINES, Image, debian_architecture
from tests.brokers import free_port

_BOOT_S = 300.0
_COMMAND_S = 300.0
_LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
_MEMORY_MB = 1536


class GuestError(Exception):
    """The guest did not boot, or a command in it failed."""


class Guest:
    """One machine with a disk of its own. Nothing runs until `start`."""

    def __init__(
        self, name: str, folder: Path, image: Image, qemu: Path, *, ports: tuple[int, ...] = ()
    ) -> None:
        """Copy the disk. `ports` of the guest can be reached from here; see `port`."""
        self.name = name
        self.image = image
        self._folder = folder
        self._qemu = qemu
        self._ports = {port: free_port() for port in (22, *ports)}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.console = folder / f"{name}.console"
        self._disk = folder / f"{name}.img"
        subprocess.run(["cp", "--sparse=always", image.disk, self._disk], check=True)
        host_key = image.host_key.read_text()
        self.known_hosts = folder / f"{name}.known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port(22)} {host_key}")

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

    def port(self, inside: int) -> int:
        """Return the port on 127.0.0.1 that is forwarded to the guest's port `inside`."""
        return self._ports[inside]

    def start(self) -> None:
        """Switch it on, and return once it can be logged in to."""
        assert self._process is None
        with (self._folder / f"{self.name}.qemu").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait_for_ssh()

    def cut_power(self) -> None:
        """Switch it off as a pulled plug does: nothing in it gets to do anything."""
        if self._process is None:
            return
        subprocess.run(self._ssh_command("-O", "exit"), capture_output=True, check=False)
        self._process.kill()
        self._process.wait()
        self._process = None

    def run(
        self, command: str, *, input_text: str | None = None, timeout_s: float = _COMMAND_S
    ) -> str:
        """Run a shell command as root; return what it wrote. Raises GuestError when it fails."""
        done = self.attempt(command, input_text=input_text, timeout_s=timeout_s)
        if done.returncode != 0:
            raise GuestError(
                f"{self.name}: {command!r} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def attempt(
        self, command: str, *, input_text: str | None = None, timeout_s: float = _COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root; return how it ended, good or bad."""
        return subprocess.run(
            [*self._ssh_command(), command],
            input=input_text if input_text is not None else "",
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file there, as root."""
        self.run(f"cat > {shlex.quote(path)}", input_text=text)

    def upload(self, source: Path, target: str) -> None:
        """Copy a directory's content into the directory `target`."""
        packed = subprocess.run(
            ["tar", "-C", source, "--exclude=__pycache__", "-c", "."],
            check=True,
            capture_output=True,
        )
        quoted = shlex.quote(target)
        subprocess.run(
            [*self._ssh_command(), f"mkdir -p {quoted} && tar -C {quoted} --no-same-owner -x"],
            input=packed.stdout,
            check=True,
            timeout=_COMMAND_S,
        )

    def ssh_options(self) -> Mapping[str, str]:
        """Return what OpenSSH needs to be told to get in."""
        return {
            "Port": str(self.port(22)),
            "IdentityFile": str(self.image.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "HostKeyAlgorithms": "ssh-ed25519",
            "BatchMode": "yes",
            "ConnectTimeout": "30",
        }

    def _ssh_command(self, *arguments: str) -> list[str]:
        # A new connection costs a second of emulated arithmetic: all commands share one.
        digest = hashlib.sha256(f"{self._folder}/{self.name}".encode()).hexdigest()[:12]
        options = {
            **self.ssh_options(),
            "ControlMaster": "auto",
            "ControlPersist": "600",
            "ControlPath": f"/tmp/edge-app-guest-{digest}",  # noqa: S108  # sockets want short paths
        }
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        return ["ssh", "-q", "-F", "none", *flags, *arguments, "root@127.0.0.1"]

    def _command(self) -> list[str]:
        """Return QEMU's command line; its program runs with the libraries of its own tree."""
        architecture = self.image.architecture
        libraries = self._qemu / "usr/lib" / f"{platform.machine()}-linux-gnu"
        loader = self._qemu / "usr/lib64" / _LOADERS[debian_architecture()]
        if not loader.exists():
            loader = libraries / _LOADERS[debian_architecture()]
        program = self._qemu / "usr/bin" / f"qemu-system-{MACHINES[architecture]}"
        return [
            *("nice", "-n", "5"),
            *("env", f"QEMU_MODULE_DIR={libraries / 'qemu'}"),
            *(str(loader), "--library-path", str(libraries), str(program)),
            *("-L", str(self._qemu / "usr/share/qemu")),
            *("-L", str(self._qemu / "usr/share/seabios")),
            *_MACHINE_FLAGS[architecture],
            *("-accel", "tcg,thread=multi,tb-size=512", "-smp", "2", "-m", str(_MEMORY_MB)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self.console}"),
            *("-device", "virtio-rng-pci"),
            *("-netdev", ",".join(["user,id=n0", *self._forwards()])),
            *("-device", "virtio-net-pci,netdev=n0,romfile="),
            *("-drive", f"file={self._disk},if=none,id=d0,format=raw,cache=writeback"),
            *("-device", "nvme,drive=d0,serial=guest"),
            *("-kernel", str(self.image.kernel), "-append", self._kernel_line()),
        ]

    def _forwards(self) -> list[str]:
        return [
            f"hostfwd=tcp:127.0.0.1:{outside}-10.0.2.15:{inside}"
            for inside, outside in self._ports.items()
        ]

    def _kernel_line(self) -> str:
        machine_id = hashlib.sha256(self.name.encode()).hexdigest()[:32]
        words = ["root=/dev/nvme0n1", "rw", "rootfstype=ext4", "quiet", "panic=-1"]
        words += [f"console={_CONSOLES[self.image.architecture]}"]
        words += ["mitigations=off", "audit=0", "nokaslr", "tsc=reliable", "no_timer_check"]
        words += ["systemd.unit=multi-user.target", f"systemd.hostname={self.name}"]
        words += [f"systemd.machine_id={machine_id}"]
        return " ".join(words)

    def _wait_for_ssh(self) -> None:
        """Wait for sshd's greeting: user networking accepts connections long before that."""
        assert self._process is not None
        deadline_s = time.monotonic() + _BOOT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port(22)), timeout=5) as link:
                    if link.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(0.2)  # nothing to wait on: it is booting
        console = self.console.read_text(errors="replace")[-2000:] if self.console.exists() else ""
        log = (self._folder / f"{self.name}.qemu").read_text()
        raise GuestError(f"{self.name} does not boot; QEMU said: {log}\nits console: {console}")


_MACHINE_FLAGS = {
    "amd64": ("-machine", "q35", "-cpu", "max"),
    "arm64": ("-machine", "virt", "-cpu", "cortex-a76"),
}
_CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
