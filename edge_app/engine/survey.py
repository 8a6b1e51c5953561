"""What this machine has for an Edge TPU, for people to read: devices, library, pycoral.

libedgetpu and pycoral are asked in a child process, because their code may crash.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_app.engine.devices import LIBRARY, EdgeTpu, ask_library, attached
from edge_app.errors import EngineError

_NICE = 10  # the appliance may be answering frames


@dataclass(frozen=True, slots=True)
class Pycoral:
    """A Python package called pycoral. `genuine`: Google's, not the unrelated one of that name."""

    version: str
    genuine: bool
    runtime: str = ""
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """What this machine has for an Edge TPU. `library_version` is None when it is not installed.

    `listed`: "usb PATH" or "pci PATH", in the order in which `usb:N` and `pci:N` count them.
    """

    attached: tuple[EdgeTpu, ...] = ()
    library_version: str | None = None
    listed: tuple[str, ...] = ()
    pycoral: Pycoral | None = None
    problem: str = ""


def find_pycoral(search: Sequence[str] | None = None) -> Pycoral | None:
    """Look for a package called pycoral, on `search` instead of sys.path, without importing it.

    Google's has `pycoral/utils/edgetpu.py`; the package of that name on PyPI has not.
    """
    for folder in sys.path if search is None else search:
        package = Path(folder) / "pycoral"
        if (package / "__init__.py").is_file():
            found = importlib.metadata.distributions(name="pycoral", path=[folder])
            version = next((each.version for each in found), "")
            return Pycoral(version, (package / "utils" / "edgetpu.py").is_file())
    return None


def survey(library: str = LIBRARY, *, timeout_s: float = 10.0) -> Survey:
    """Ask the kernel, the library and, when it is there, Google's pycoral. Raises nothing.

    The last two are asked in a child process; what went wrong there is `problem`.
    """
    seen = attached()
    command = [sys.executable, "-P", "-m", __name__, library]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Survey(seen, problem=f"{library} gave no answer within {timeout_s:g} s")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return Survey(seen, problem=f"{library} crashed when asked for its devices ({name})")
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing said"]
        return Survey(seen, problem=f"asking {library} failed: {said[-1]}")
    coral = told["pycoral"]
    if coral is not None:
        coral = Pycoral(coral["version"], coral["genuine"], coral["runtime"], (*coral["devices"],))
    return Survey(seen, told["version"], tuple(told["listed"]), coral, told["problem"])


def _ask_pycoral() -> Pycoral | None:
    found = find_pycoral()
    if found is None or not found.genuine:
        return found
    utils = importlib.import_module("pycoral.utils.edgetpu")
    devices = tuple(f"{each['type']} {each['path']}" for each in utils.list_edge_tpus())
    return Pycoral(found.version, True, str(utils.get_runtime_version()), devices)


def _main(library: str) -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(_NICE)
    version: str | None = None
    listed: tuple[str, ...] = ()
    problem = ""
    try:
        version, listed = ask_library(library)
    except EngineError as error:
        problem = str(error)
    try:
        pycoral = _ask_pycoral()
    except ImportError as error:  # built for another Python, or without libedgetpu
        pycoral = find_pycoral()
        problem = problem or f"pycoral cannot be imported: {error}"
    answer = {
        "version": version,
        "listed": listed,
        "pycoral": None if pycoral is None else asdict(pycoral),
        "problem": problem,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
