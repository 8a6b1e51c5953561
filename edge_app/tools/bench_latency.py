"""What the appliance's own path adds to an inference, frame by frame.

The loop, the cameras and the MQTT publisher are the appliance's, in this process, so that a frame
can be followed to the moment its result is handed over: no message can tell that of itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from edge_app.cameras import open_cameras
from edge_app.catalog import resolve
from edge_app.config import load
from edge_app.engines import open_engine
from edge_app.publish.wire import Topics
from edge_app.publishers import publishing
from edge_app.tools.bench_loop import (
    FollowedFrames,
    FollowedPublisher,
    run_loop,
    switching_often,
)

_WARM_UP_FRAMES = 10


def added_ms(config_path: Path, seconds: float) -> list[float]:
    """Run for `seconds`; return for each frame its time from ready to handed over, less inference.

    Resizing, waiting for the engine, decoding, the rules, encoding and handing over are in it.
    """
    config = load(config_path)
    engine = open_engine(config.model, resolve(config.model.name))
    topics = Topics(config.mqtt.base, config.device.id)
    mailboxes = open_cameras(config.camera, engine.info.input_px)
    frames = FollowedFrames(mailboxes)
    with closing(engine), publishing(config, topics) as inner, switching_often():
        publisher = FollowedPublisher(inner, topics.result)
        run_loop(mailboxes, engine, publisher, topics, seconds, frames=frames)
    return frame_added_ms(frames.ready_ns, publisher.handed_over)[_WARM_UP_FRAMES:]


def frame_added_ms(
    ready_ns: Mapping[int, int], handed_over: Sequence[tuple[bytes, int]]
) -> list[float]:
    """Return for each result what was added to its inference."""
    added = []
    for payload, handed_ns in handed_over:
        result = json.loads(payload)
        spent_ms = (handed_ns - ready_ns[result["frame"]]) / 1e6
        added.append(spent_ms - result["timing_ms"]["invoke"])
    return added
