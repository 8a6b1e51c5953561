"""A model on an Edge TPU, from outside: a child process in which `engine.opening` opens it."""

from __future__ import annotations

from dataclasses import asdict

from edge_app.engine import devices, opening
from edge_app.engine.child import Bounds, ChildEngine, ChildFailed
from edge_app.engine.opening import EdgeTpuModel

_CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL")


class EdgeTpuEngine(ChildEngine):
    """The Edge TPU, behind a child process. Knows what a death while opening means."""

    def __init__(self, model: EdgeTpuModel, bounds: Bounds | None = None) -> None:
        """Start the child. Raises ConfigError for a device libedgetpu does not take."""
        devices.check_device(model.device)
        self._library = model.library
        super().__init__(f"{opening.__name__}:open_here", asdict(model), bounds or Bounds())

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
                hint=opening.REBUILD,
                signal=error.signal,
                said=error.said,
            ) from error
