"""What can be wrong with the stand-in device, and how the test tells the device process.

One fault at a time, in the file `fault` of the device's folder. It outlives the device process: a
faulty stick is still faulty after it was pulled and put back.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    "open_refused",  # listed, but cannot be opened: no permission, or in use elsewhere
    "open_slow",  # as a first open with its firmware upload
    "open_hang",
    "invoke_error",  # TfLiteStatus is an error
    "invoke_abort",  # the host's process aborts; the device stays
    "invoke_hang",
    "invoke_slow",
    "wrong_output",
]

_FAULT, _USED = "fault", "fault.used"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `id` tells it from an equal one set later.

    `times`: how often it strikes, None for ever. `seconds`: how long a slow open or inference
    takes. `mask`: the bits that wrong output has flipped in every byte.
    """

    kind: Kind
    times: int | None = None
    seconds: float = 0.0
    mask: int = 0x55
    id: int = 0


def set_fault(folder: Path, fault: Fault | None) -> None:
    """Make `fault` the only one of the device in `folder`, from its next request on."""
    text = json.dumps(fault and asdict(fault) | {"id": time.monotonic_ns()})
    _replace(folder / _FAULT, text)


def strike(folder: Path, stage: Literal["open", "invoke"]) -> Fault | None:
    """Return the fault that meets this request, and count it.

    Only the device process may call this: it alone writes the count, as only the test writes the
    fault, so neither needs a lock.
    """
    said = _read(folder / _FAULT)
    if not said or said["kind"].startswith("open_") != (stage == "open"):
        return None
    fault = Fault(**said)
    count = times_struck(folder)
    if fault.times is not None and count >= fault.times:
        return None
    _replace(folder / _USED, json.dumps({"id": fault.id, "count": count + 1}))
    return fault


def times_struck(folder: Path) -> int:
    """Return how many requests have met the present fault."""
    said, used = _read(folder / _FAULT), _read(folder / _USED)
    return int(used["count"]) if said and used and used["id"] == said["id"] else 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)
