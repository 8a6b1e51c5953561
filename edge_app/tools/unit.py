"""What systemd says of a unit."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from edge_app.errors import EdgeAppError

_ONLY_BROKER = "--unit '' asks only the broker"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's state such as "active (running)", its main process (or 0), its restarts so far."""

    state: str
    pid: int
    restarts: int

    @property
    def active(self) -> bool:
        """Whether it runs, and has said that it is ready."""
        return self.state.startswith("active")


def read_unit(name: str) -> Unit:
    """Ask systemd. Raises EdgeAppError when there is none, or no such unit."""
    command = ["systemctl", "show", "-p", "LoadState,ActiveState,SubState,MainPID,NRestarts", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except FileNotFoundError as error:
        raise EdgeAppError("there is no systemd here", hint=_ONLY_BROKER) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().partition("\n")[0] or f"systemctl ended with {error.returncode}"
        raise EdgeAppError(f"systemd does not tell of {name}: {said}", hint=_ONLY_BROKER) from error
    except subprocess.TimeoutExpired as error:
        text = f"systemd does not tell of {name}: no answer in {error.timeout:g} s"
        raise EdgeAppError(text, hint=_ONLY_BROKER) from error
    said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if said.get("LoadState") == "not-found":
        raise EdgeAppError(f"there is no unit {name}", hint="--unit names it")
    return Unit(
        state=f"{said['ActiveState']} ({said['SubState']})",
        pid=int(said.get("MainPID", 0)),
        restarts=int(said.get("NRestarts", 0)),
    )
