"""What opens an Edge TPU in the child process, and what each way of failing means.

Light until a device is found: while there is none it is looked for again and again, and importing
the runtime would take more of the processor than all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_app.engine import devices
from edge_app.errors import EngineError

if TYPE_CHECKING:
    from edge_app.domain import Performance
    from edge_app.engine.litert import LiteRtEngine

REBUILD = (
    "install a libedgetpu built for this runtime's age (docs/accelerator.md says which go together)"
)
_INSTALL = 'install libedgetpu (docs/accelerator.md), or set model.backend = "cpu"'


@dataclass(frozen=True, slots=True)
class EdgeTpuModel:
    """A compiled model, the device it is for, and how fast that may run.

    `performance` sets the clock: low 63, medium 125, high 250, max 500 MHz; max is for rooms of at
    most 25 degrees Celsius.
    """

    path: str
    name: str = ""
    runtime: str = "auto"
    device: str = ""
    performance: Performance = "high"
    library: str = devices.LIBRARY


def prepare(model: Mapping[str, str]) -> None:
    """Import the runtime, most of the work of opening, if there is a device; for `engine.worker`.

    Raises EngineError otherwise.
    """
    _find(EdgeTpuModel(**model))  # type: ignore[arg-type]  # the parent's, through JSON
    from edge_app.engine.litert import find_runtime

    find_runtime(model["runtime"])


def open_here(**model: str) -> LiteRtEngine:
    """Open the Edge TPU in this process, which may not survive it; for `engine.worker`.

    Raises ModelError, or EngineError with the cause and the cure.
    """
    wanted = EdgeTpuModel(**model)  # type: ignore[arg-type]
    version, listed = _find(wanted)
    from edge_app.engine.litert import Delegate, DelegateError, LiteRtEngine

    device = devices.check_device(wanted.device)
    options = {"device": device, "Performance": wanted.performance.capitalize()}
    try:
        return LiteRtEngine(
            Path(wanted.path),
            name=wanted.name,
            runtime=wanted.runtime,
            delegate=Delegate(wanted.library, f"libedgetpu {version}".strip(), options),
        )
    except DelegateError as error:
        if isinstance(error.__cause__, RuntimeError):
            raise EngineError(f"{error}: it is too old for this runtime", hint=REBUILD) from error
        raise _explained(wanted, listed) from error


def _find(wanted: EdgeTpuModel) -> tuple[str, tuple[str, ...]]:
    """Return the library's version and its list of devices.

    Raises EngineError without a library, and when neither it nor the kernel knows of a device.
    """
    try:
        version, listed = devices.ask_library(wanted.library)
    except EngineError as error:
        raise EngineError(str(error), hint=_INSTALL) from error
    if not listed and not devices.attached():
        raise _explained(wanted, listed)
    return version, listed


def _explained(wanted: EdgeTpuModel, listed: tuple[str, ...]) -> EngineError:
    device = devices.check_device(wanted.device)
    message, hint = devices.explain(device, devices.attached(), listed)
    return EngineError(f"{wanted.library}: {message}", hint=hint)
