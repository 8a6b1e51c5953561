"""A model on an Edge TPU: what is opened, where, and what each way of failing means.

`EdgeTpuModel` is opened in a child process; `open_here` runs in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edge_app.engine import devices
from edge_app.engine.child import Bounds, ChildEngine, ChildFailed
from edge_app.engine.litert import Delegate, DelegateError, LiteRtEngine, find_runtime
from edge_app.errors import EngineError

Performance = Literal["low", "medium", "high", "max"]
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL")
_INSTALL = 'install libedgetpu (docs/accelerator.md), or set model.backend = "cpu"'
_REBUILD = (
    "install a libedgetpu built for this runtime's age (docs/accelerator.md says which go together)"
)


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


class EdgeTpuEngine(ChildEngine):
    """The Edge TPU, behind a child process. Knows what a death while opening means."""

    def __init__(self, model: EdgeTpuModel, bounds: Bounds | None = None) -> None:
        """Start the child. Raises ConfigError for a device libedgetpu does not take."""
        devices.check_device(model.device)
        self._library = model.library
        super().__init__(f"{__name__}:open_here", asdict(model), bounds or Bounds())

    def open(self) -> None:
        """Wait until the device answers; see `ChildEngine.open`."""
        try:
            super().open()
        except ChildFailed as error:
            if error.signal not in _CRASHES:
                raise
            raise ChildFailed(
                f"{self._library} crashed when it was first used ({error.signal}): it is too old "
                "for this TensorFlow Lite runtime",
                hint=_REBUILD,
                signal=error.signal,
                said=error.said,
            ) from error


def prepare(model: Mapping[str, str]) -> None:
    """Import the runtime, most of the work of opening; for `engine.worker`."""
    find_runtime(model["runtime"])


def open_here(**model: str) -> LiteRtEngine:
    """Open the Edge TPU in this process, which may not survive it; for `engine.worker`.

    Raises ModelError, or EngineError with the cause and the cure.
    """
    wanted = EdgeTpuModel(**model)  # type: ignore[arg-type]  # the parent's, through JSON
    device = devices.check_device(wanted.device)
    try:
        version, listed = devices.ask_library(wanted.library)
    except EngineError as error:
        raise EngineError(str(error), hint=_INSTALL) from error
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
            raise EngineError(f"{error}: it is too old for this runtime", hint=_REBUILD) from error
        message, hint = devices.explain(device, devices.attached(), listed)
        raise EngineError(f"{wanted.library}: {message}", hint=hint) from error
