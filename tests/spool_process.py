"""A process that publishes records through the appliance's own publisher until SIGTERM.

Arguments: a configuration file and how many records a second. Prints a line for every record.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

from edge_app import config
from edge_app.domain import Delivery, Message
from edge_app.publish.wire import Topics
from edge_app.publishers import publishing


def main(file: str, rate_hz: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = config.load(Path(file))
    topics = Topics("edge", settings.device.id)
    with publishing(settings, topics) as publisher:
        while not stop.wait(1 / float(rate_hz)):
            offered_ns = time.monotonic_ns()
            payload = json.dumps({"n": offered_ns}).encode()
            publisher.offer(Message(topics.result, payload, Delivery.SPOOLED))
            print(offered_ns, flush=True)  # noqa: T201  # for the test that started us


if __name__ == "__main__":
    main(*sys.argv[1:])
