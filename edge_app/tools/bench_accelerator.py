"""What `edge-app bench` says about accelerators, on a machine without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_app.tools import bench_child, bench_device, bench_probing
from edge_app.tools.bench_figures import Figure, judged

_LEAST_FRAMES = 100  # for a 99th percentile


def figures(path: Path, seconds: float, say: Callable[[str], None]) -> list[Figure]:
    """Measure with the model at `path`, about `seconds` a part; `say` tells which."""
    say("child process")
    found = _child(path, seconds)
    say("a simulated device in the loop")
    found += _device(path, seconds)
    say("an accelerator that is opened again and again")
    return found + _probing(path, 3 * seconds)


def _child(path: Path, seconds: float) -> list[Figure]:
    meaning = "the same inference in a child process takes so much longer, at the median"
    cost_ms = bench_child.model_cost_ms(path, seconds)
    device_ms = bench_child.device_cost_ms(path, seconds)
    exchange_ms = bench_child.exchange_ms(path, seconds / 3)
    return [
        judged("child, cost", cost_ms, "ms", meaning, ("<=", 0.15)),
        Figure("child, of a device", round(device_ms, 3), "ms", "the same for a simulated device"),
        Figure("child, exchange", round(exchange_ms, 3), "ms", "a device that takes no time"),
    ]


def _device(path: Path, seconds: float) -> list[Figure]:
    labels_hz, share, waiting = bench_device.busy_share(path, 2 * seconds)
    device = f"a simulated device of {bench_child.DEVICE_MS:g} ms in a child process"
    return [
        Figure("device, labels", round(labels_hz, 1), "1/s", f"the whole loop on {device}"),
        judged("device, share", share, "", "of what that device can do alone", (">=", 0.95)),
        Figure(
            "device, share, waiting",
            round(waiting, 3),
            "",
            "the same when the next frame is handed over only when the device is done",
        ),
    ]


def _probing(path: Path, seconds: float) -> list[Figure]:
    quiet_ms, probed_ms = bench_probing.latencies_ms(path, seconds)
    if min(len(quiet_ms), len(probed_ms)) < _LEAST_FRAMES:
        return []
    quiet, probed = (float(np.percentile(each, 99)) for each in (quiet_ms, probed_ms))
    meaning = "a frame from capture to hand-over on the CPU, no accelerator being opened"
    return [
        Figure("latency p99, steady", round(quiet, 2), "ms", meaning),
        judged(
            "latency p99, probing",
            probed / quiet,
            "",
            "of that while an accelerator is opened, tried out and given up",
            ("<=", 1.2),
        ),
    ]
