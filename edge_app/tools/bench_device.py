"""Whether the loop keeps an accelerator busy.

No Edge TPU is needed: a simulated device takes the 4.5 ms that pycoral's authors give for
MobileNetV2 on a Raspberry Pi 4 with USB 3, and computes nothing.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np

from edge_app.cameras import open_cameras
from edge_app.catalog import shipped_dir
from edge_app.config import CameraConfig
from edge_app.domain import Engine
from edge_app.engine.failover import FailoverEngine
from edge_app.engine.health import Limits
from edge_app.engine.litert import LiteRtEngine
from edge_app.engine.supervisor import Canary
from edge_app.inference import OneByOne
from edge_app.publish.wire import Topics
from edge_app.tools.bench_child import DEVICE_MS, SimulatedDevice, simulated
from edge_app.tools.bench_loop import Counted, run_loop, switching_often

_TURN_S = 0.5
_LEAST_ROUNDS = 2
_SERVES_AT_ONCE = Limits(canaries=1)


def busy_share(path: Path, seconds: float) -> tuple[float, float, float]:
    """Return the labels a second of the whole loop on a simulated device, and two shares.

    A share is of what the same device does when it is run in this process, back to back with
    nothing else to do: the device's limit. The second share is for a loop that hands over the next
    frame only when the device is done. All take turns.
    """
    with closing(LiteRtEngine(path)) as model:
        info = model.info
    here = SimulatedDevice(info, DEVICE_MS)
    canary = Canary(np.zeros(info.input.shape[1:], np.uint8), lambda _: "")
    engine = FailoverEngine(
        SimulatedDevice(info, DEVICE_MS),
        lambda: simulated(info, DEVICE_MS),
        [canary],
        limits=_SERVES_AT_ONCE,
    )
    limits_hz, ahead_hz, waiting_hz = [], [], []
    with closing(engine), switching_often():
        engine.settle()
        for _ in range(max(_LEAST_ROUNDS, round(seconds / (3 * _TURN_S)))):
            limits_hz.append(_alone_hz(here, _TURN_S))
            ahead_hz.append(_labels_hz(engine, _TURN_S))
            waiting_hz.append(_labels_hz(OneByOne(engine), _TURN_S))
    shares, waiting_shares = (
        [rate / limit for rate, limit in zip(rates_hz, limits_hz, strict=True)]
        for rates_hz in (ahead_hz, waiting_hz)
    )
    return median(ahead_hz), median(shares), median(waiting_shares)


def _alone_hz(device: SimulatedDevice, seconds: float) -> float:
    pixels = np.zeros(device.info.input.shape[1:], np.uint8)
    start_s, count = time.monotonic(), 0
    while time.monotonic() - start_s < seconds:
        device.run(pixels)
        count += 1
    return count / (time.monotonic() - start_s)


def _labels_hz(engine: Engine, seconds: float) -> float:
    """Run the loop on sample photos and `engine`; return its results a second."""
    camera = CameraConfig(source=f"images:{shipped_dir() / 'samples'}", fps=0)
    mailboxes = open_cameras({"main": camera}, engine.info.input_px)
    counted = Counted()
    run_loop(mailboxes, engine, counted, Topics("edge", "bench"), seconds)
    return counted.rate_hz()
