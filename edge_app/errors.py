"""Every error a user can cause or cure, in one tree.

An `EdgeAppError` is shown as one line and a hint, never as a traceback; anything else that reaches
the outermost frame is a bug and keeps its traceback.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78


class EdgeAppError(Exception):
    """What was found wrong, what is allowed (the message) and what to do (`hint`)."""

    exit_code = EXIT_UNAVAILABLE  # something it takes is not there, or does not work
    kind = ""  # of the event that tells of it, when it ends the appliance
    camera = ""  # the one it is about

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(EdgeAppError):
    """The command line asks for something that cannot be done."""

    exit_code = EXIT_USAGE


class Unreadable(EdgeAppError):
    """A text file that cannot be read; whoever needs it says what for."""


class ConfigError(EdgeAppError):
    """The configuration is not valid; `faults` lists everything that is wrong with it."""

    exit_code = EXIT_CONFIG

    def __init__(self, message: str, hint: str = "", faults: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.faults = faults


class CameraError(EdgeAppError):
    """A camera cannot be opened or used."""

    exit_code = EXIT_UNAVAILABLE
    kind = "camera_failed"


class CameraStalled(CameraError):
    """A camera that was open yielded nothing for its bound."""

    kind = "camera_stalled"


class CameraEnded(CameraError):
    """The source has no further frame, and was not asked to loop."""


class CorruptFrame(CameraError):
    """One frame could not be decoded; the next one may be fine."""


class EngineError(EdgeAppError):
    """An inference engine cannot be opened or used."""

    exit_code = EXIT_UNAVAILABLE
    kind = "engine_failed"


class ModelError(EngineError):
    """A model file, its labels or its passport is missing, damaged or unsuitable."""
