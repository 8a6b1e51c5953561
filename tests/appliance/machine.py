"""What can be done to any machine of the test, over ssh, as a user would."""

from __future__ import annotations

import hashlib
import io
import shlex
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.appliance.image import Image

_BOOT_S = 300.0
_COMMAND_S = 300.0


class MachineError(Exception):
    """The machine did not start, or a command in it failed."""


class Machine:
    """A machine whose ssh answers at 127.0.0.1, port `ssh_port`."""

    def __init__(self, name: str, folder: Path, image: Image, ssh_port: int) -> None:
        self.name = name
        self.image = image
        self.ssh_port = ssh_port
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.console = folder / f"{name}.console"
        self.known_hosts = folder / f"{name}.known_hosts"
        host_key = image.host_key.read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{ssh_port} {host_key}")

    def run(self, command: str, *, input_text: str = "", timeout_s: float = _COMMAND_S) -> str:
        """Run a shell command as root; return what it wrote. Raises MachineError if it fails."""
        done = self.attempt(command, input_text=input_text, timeout_s=timeout_s)
        if done.returncode != 0:
            raise MachineError(
                f"{self.name}: {command!r} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def attempt(
        self, command: str, *, input_text: str = "", timeout_s: float = _COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root; return how it ended, good or bad."""
        return subprocess.run(
            [*self._ssh_command(), command],
            input=input_text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file there, as root."""
        self.run(f"cat > {shlex.quote(path)}", input_text=text)

    def unpack(self, files: Mapping[str, bytes]) -> None:
        """Write files there, as root, under their absolute paths."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path, content in files.items():
                member = tarfile.TarInfo(path.lstrip("/"))
                member.size, member.mode = len(content), 0o644
                tar.addfile(member, io.BytesIO(content))
        command = [*self._ssh_command(), "tar -x -C /"]
        subprocess.run(command, input=packed.getvalue(), check=True, timeout=_COMMAND_S)

    def unit(self, name: str = "edge-app") -> Mapping[str, str]:
        """Return the properties that systemd tells of a service."""
        lines = self.run(f"systemctl show {name}").splitlines()
        # It leaves out a status of a service that has not said one.
        return {"StatusText": "", **dict(line.partition("=")[::2] for line in lines)}

    def wait_for_unit(
        self,
        wanted: Callable[[Mapping[str, str]], bool],
        name: str = "edge-app",
        timeout_s: float = 240.0,
    ) -> Mapping[str, str]:
        """Return the properties of a service once they are as wanted."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = self.unit(name)
            if wanted(found):
                return found
            if time.monotonic() > deadline_s:
                log = self.run(f"journalctl -u {name} -n 30 -o cat --no-pager")
                raise AssertionError(
                    f"{name} on {self.name} is {found['ActiveState']} after {timeout_s:.0f} s; "
                    f"its log ends with:\n{log}"
                )
            time.sleep(1.0)

    def ssh_options(self) -> Mapping[str, str]:
        """Return what OpenSSH needs to be told to get in."""
        return {
            "Port": str(self.ssh_port),
            "IdentityFile": str(self.image.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "HostKeyAlgorithms": "ssh-ed25519",
            "BatchMode": "yes",
            "ConnectTimeout": "60",
        }

    def hang_up(self) -> None:
        """End the connection that commands share."""
        subprocess.run(self._ssh_command("-O", "exit"), capture_output=True, check=False)

    def _ssh_command(self, *arguments: str) -> list[str]:
        # A new connection costs a second of emulated arithmetic: all commands share one.
        digest = hashlib.sha256(f"{self.folder}/{self.name}".encode()).hexdigest()[:12]
        options = {
            **self.ssh_options(),
            "ControlMaster": "auto",
            "ControlPersist": "600",
            "ControlPath": f"/tmp/edge-app-{digest}",  # noqa: S108  # sockets want short paths
        }
        flags = [flag for name, value in options.items() for flag in ("-o", f"{name}={value}")]
        return ["ssh", "-q", "-F", "none", *flags, *arguments, "root@127.0.0.1"]

    def wait_for_ssh(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for sshd's greeting: emulated networks accept connections long before that."""
        deadline_s = time.monotonic() + _BOOT_S
        while time.monotonic() < deadline_s and process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.ssh_port), timeout=5) as link:
                    if link.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(0.2)  # nothing to wait on: it is booting
        console = self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""
        raise MachineError(f"{self.name} does not start; its console: {console}")


def messages_waiting(unit: Mapping[str, str]) -> int:
    """Return how many messages wait for the broker, from the service's status line."""
    words = unit["StatusText"].split()
    return int(words[words.index("messages") - 1]) if "messages" in words else 0
