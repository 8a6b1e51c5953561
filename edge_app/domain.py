"""The records that flow through the appliance, and the protocols its parts meet at.

Times ending in `_ns` are CLOCK_MONOTONIC; wall-clock time exists only in `publish.wire`.
Pixels are `H x W x 3` uint8, channels in R, G, B order, unless a name says otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_app.stats import MqttState, SpoolState

Pixels = NDArray[np.uint8]
Tensor = NDArray[Any]
Performance = Literal["low", "medium", "high", "max"]  # an Edge TPU's clock


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture. `pixels` is owned by the frame: no camera writes to it again."""

    camera: str
    seq: int
    captured_ns: int
    pixels: Pixels


class Camera(Protocol):
    """A source of frames, used by one thread. Opened by `with`."""

    def __enter__(self) -> Camera: ...

    def __exit__(self, *exc: object) -> None: ...

    def read(self, timeout_s: float) -> Frame:
        """Return the next frame, waiting up to `timeout_s`.

        Raises CameraStalled when none came in time, CameraEnded when none will come any more,
        CorruptFrame when this one cannot be decoded, CameraError when the camera is lost.
        """
        ...

    def interrupt(self) -> None:
        """Make a `read` that waits return or raise soon. Called from another thread."""
        ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output tensor: `real = scale * (code - zero_point)`; `scale` 0: float."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs, and on what. `backend` is the one that really computes."""

    model: str
    backend: str
    runtime: str
    device: str
    threads: int
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]

    @property
    def input_px(self) -> tuple[int, int]:
        """Width and height the model takes, in pixels."""
        _, height, width, _ = self.input.shape
        return width, height


class Engine(Protocol):
    """A loaded model on one backend; used by one thread at a time."""

    @property
    def info(self) -> EngineInfo: ...

    def run(self, pixels: Pixels) -> list[Tensor]:
        """Infer on one picture of exactly the model's input size.

        Returns one raw (still quantised) array per output, owned by the caller, in the order of
        `info.outputs`, without the batch dimension. Raises EngineError.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class PipelinedEngine(Engine, Protocol):
    """An engine that takes the next picture while it is at work on one, and so never has to wait.

    `run` is `start` and `finish`, with nothing else at work.
    """

    @property
    def ahead(self) -> int:
        """How many pictures it is of use to start beyond the first; it may change at any time."""
        ...

    def start(self, pixels: Pixels) -> None:
        """Hand over one more picture, beyond `ahead` others at most."""
        ...

    def finish(self) -> list[Tensor]:
        """Wait for the outputs of the picture that was started first. Raises EngineError."""
        ...


@dataclass(frozen=True, slots=True)
class Label:
    """One class and its score in 0..1.

    `index`: of the model's output. `label`: its name, empty when the model has no names.
    `score`: 0 to 1.
    """

    index: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Where one frame's time went.

    `age_ms`: capture to start of inference (waiting and `preprocess_ms` included);
    `postprocess_ms`: decoding the outputs.
    """

    age_ms: float
    preprocess_ms: float
    invoke_ms: float
    postprocess_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen in one frame. `trigger` says why it is published."""

    camera: str
    frame: int
    captured_ns: int
    task: str
    model: str
    backend: str
    labels: tuple[Label, ...]
    timing: Timing
    trigger: str


@dataclass(frozen=True, slots=True)
class WallClock:
    """How to turn monotonic time into UTC. `synced` is None when nothing can tell."""

    utc_minus_monotonic_ns: int
    synced: bool | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the appliance, named by `kind`, with its particulars."""

    kind: str
    message: str
    details: Mapping[str, str | int | float | None] = field(default_factory=dict)

    def fields(self) -> dict[str, object]:
        """Return it as the `extra` of a log record, which the journal can be searched by."""
        return {"edge_event": self.kind} | {
            f"edge_{name}": value for name, value in self.details.items()
        }


class Delivery(enum.Enum):
    """How much a message matters."""

    SPOOLED = "spooled"  # QoS 1, numbered, kept until acknowledged
    STATE = "state"  # QoS 1, retained, only the newest counts
    REPLY = "reply"  # QoS 1, dropped while offline
    VOLATILE = "volatile"  # QoS 0, dropped while offline


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes for one topic. A SPOOLED payload is a JSON object; the publisher adds `seq` to it.

    `correlation`: what a request asked to see again in its reply. `schema`: what the payload
    follows, empty when it is not ours; both MQTT 5.
    """

    topic: str
    payload: bytes
    delivery: Delivery
    retain: bool = False
    expiry_s: int | None = None
    content_type: str = "application/json"
    correlation: bytes = b""
    schema: str = "edge-app/1"


@dataclass(frozen=True, slots=True)
class Received:
    """A message somebody sent to this appliance. `reply_topic` is empty when none was named.

    `retained`: the broker kept it from an earlier time, or (MQTT 5 tells) will keep it from now on.
    """

    topic: str
    payload: bytes
    retained: bool = False
    reply_topic: str = ""
    correlation: bytes = b""


class Publisher(Protocol):
    """Where messages go. Used from the loop's thread."""

    def offer(self, message: Message) -> None:
        """Take the message. Never blocks, never raises."""
        ...

    def state(self) -> tuple[SpoolState, MqttState]:
        """Say how much waits for delivery, and how the connection fares."""
        ...

    def received(self) -> list[Received]:
        """Return what came in since the last call, oldest first. Never blocks."""
        ...

    def drain(self, timeout_s: float, *, or_saved: bool = False) -> bool:
        """Wait until everything offered was delivered; False when `timeout_s` was not enough.

        `or_saved`: nor wait while nothing can be delivered and a disk will have it all.
        """
        ...

    def close(self) -> None: ...
