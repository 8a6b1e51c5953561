"""What can be changed while the appliance runs. A restart brings the configured values back."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Mode = Literal["changes", "every"]
Performance = Literal["low", "medium", "high", "max"]


class Settings(Struct, frozen=True):
    """The values in effect.

    `fps`: at most so many frames a second of each camera are inferred; 0: every frame that the
    engine has time for. `performance`: the Edge TPU's clock; null when none is in use.
    """

    threshold: float
    top_k: int
    mode: Mode
    fps: float = 0.0
    paused: bool = False
    performance: Performance | None = None
