"""Whether frames are delayed while an accelerator is opened, tried out and given up.

The whole loop runs on the CPU, as it does in an accelerator's absence, while one is opened again
and again: a child process that imports the runtime, loads the model and takes its time like a first
USB open, and then answers its canary wrongly. Frames met by such a probe are compared with those
between two probes, of the same run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edge_app.cameras import open_cameras
from edge_app.catalog import shipped_dir
from edge_app.config import CameraConfig
from edge_app.domain import EngineInfo
from edge_app.engine.child import ChildEngine
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.health import Limits
from edge_app.engine.litert import LiteRtEngine
from edge_app.engine.supervisor import Canary
from edge_app.publish.wire import Topics
from edge_app.tools import bench_child
from edge_app.tools.bench_loop import (
    Counted,
    FollowedFrames,
    FollowedPublisher,
    run_loop,
    switching_often,
)

_FPS = 30.0
_PAUSE_S = 1.0
_WARM_UP_S = 1.0
_PROBED_OFTEN = Limits(canaries=1, pause_s=_PAUSE_S, longest_pause_s=_PAUSE_S, jitter=0.0)


class _Probe(ChildEngine):
    """A child whose life is noted in `lives`, from before it is started until it is gone (ns)."""

    def __init__(self, path: Path, info: EngineInfo, lives: list[tuple[int, int]]) -> None:
        self._lives = lives
        self._born_ns = time.monotonic_ns()
        arguments = {"path": str(path), "info": asdict(info)}
        super().__init__(f"{bench_child.__name__}:open_like_usb", arguments)

    def close(self) -> None:
        """See `ChildEngine.close`."""
        super().close()
        self._lives.append((self._born_ns, time.monotonic_ns()))


def latencies_ms(path: Path, seconds: float) -> tuple[list[float], list[float]]:
    """Return how long frames took from capture to hand-over, between probes and during them."""
    lives: list[tuple[int, int]] = []
    cpu = LiteRtEngine(path)
    info = cpu.info
    canary = Canary(np.zeros(info.input.shape[1:], np.uint8), lambda _: "it is simulated")
    engine = FailoverEngine(cpu, lambda: _Probe(path, info, lives), [canary], limits=_PROBED_OFTEN)
    topics = Topics("edge", "bench")
    camera = CameraConfig(source=f"images:{shipped_dir() / 'samples'}", fps=_FPS)
    mailboxes = open_cameras({"main": camera}, info.input_px)
    frames = FollowedFrames(mailboxes)
    began_ns = time.monotonic_ns() + round(_WARM_UP_S * 1e9)
    with closing(Counted()) as counted, switching_often():
        publisher = FollowedPublisher(counted, topics.result)
        with closing(engine):
            run_loop(mailboxes, engine, publisher, topics, seconds + _WARM_UP_S, frames=frames)
    return split(frames.ready_ns, publisher.handed_over, lives, began_ns)


def split(
    ready_ns: Mapping[int, int],
    handed_over: Sequence[tuple[bytes, int]],
    lives: Sequence[tuple[int, int]],
    began_ns: int = 0,
) -> tuple[list[float], list[float]]:
    """Return the latencies of frames that met none of `lives`, and of those that did."""
    quiet: list[float] = []
    probed: list[float] = []
    for payload, handed_ns in handed_over:
        taken_ns = ready_ns[json.loads(payload)["frame"]]
        if taken_ns < began_ns:
            continue
        met = any(born_ns < handed_ns and taken_ns < gone_ns for born_ns, gone_ns in lives)
        (probed if met else quiet).append((handed_ns - taken_ns) / 1e6)
    return quiet, probed
