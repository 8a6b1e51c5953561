"""The machine somebody provisions from: an inventory, an authority's folder, our playbooks."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.appliance.image import ROOT
from tests.appliance.machine import Machine

_ANSIBLE = ROOT / ".venv-ansible" / "bin" / "ansible-playbook"
BUNDLE = ROOT / "dist" / "bundle"
_RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)


@dataclass(frozen=True, slots=True)
class Recap:
    """What Ansible counted for one host."""

    changed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Play:
    """How a playbook ended."""

    returncode: int
    output: str

    def recap(self, host: str) -> Recap | None:
        """Return a host's counts; None when it had no turn."""
        for name, changed, unreachable, failed in _RECAP.findall(self.output):
            if name == host:
                return Recap(int(changed), int(unreachable) + int(failed))
        return None

    def changes(self) -> list[str]:
        """Return the tasks that changed something, for the reader of a failure."""
        changed, task = [], ""
        for line in self.output.splitlines():
            if line.startswith(("TASK [", "RUNNING HANDLER [")):
                task = line
            elif line.startswith("changed: "):
                changed.append(f"{task} {line}")
        return changed


class Controller:
    """Runs playbooks against machines. `inventory` is Ansible's, hosts mapped to no machine yet."""

    def __init__(
        self, folder: Path, inventory: Mapping[str, Any], machines: Mapping[str, Machine]
    ) -> None:
        self._folder = folder
        self._log = folder / "ansible.log"
        self._plays = 0
        folder.mkdir(parents=True, exist_ok=True)
        hosts = {name: _login(machine) for name, machine in machines.items()}
        everything = {"all": {"hosts": hosts, "vars": {"ansible_user": "pi"}}, **inventory}
        # What is JSON is YAML.
        (folder / "inventory.yml").write_text(json.dumps(everything, indent=2))

    def certificates(self, person: str) -> Path:
        """Return the folder of a person's certificate."""
        return self._folder / "ca" / "people" / person

    @property
    def authority(self) -> Path:
        """The folder of the certificate authority."""
        return self._folder / "ca"

    def play(self, playbook: str, *arguments: str) -> Play:
        """Run one of our playbooks, and return how it ended, good or bad."""
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(BUNDLE / "provisioning" / "ansible.cfg"),
            "ANSIBLE_TIMEOUT": "120",  # an emulated sudo may take its time
            "ANSIBLE_LOCAL_TEMP": str(self._folder / "tmp"),
            "ANSIBLE_LOG_PATH": str(self._log),
            "ANSIBLE_NOCOLOR": "1",
            "PY_COLORS": "0",
        }
        command = [str(_ANSIBLE), "-i", str(self._folder / "inventory.yml"), playbook, *arguments]
        done = subprocess.run(
            command,
            cwd=BUNDLE / "provisioning",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Play(done.returncode, done.stdout)


def _login(machine: Machine) -> dict[str, Any]:
    options = {**machine.ssh_options()}
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": int(options.pop("Port")),
        "ansible_ssh_private_key_file": options.pop("IdentityFile"),
        "ansible_ssh_common_args": " ".join(
            f"-o {name}={value}" for name, value in options.items()
        ),
    }
